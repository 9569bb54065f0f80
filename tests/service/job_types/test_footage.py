"""Footage jobs: the walks of a long clip, who they are, how long they are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import cast

import httpx
import numpy as np
import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from service.foundation.errors import Unavailable
from service.foundation.settings import Settings
from service.gallery.store import GalleryStore
from service.gallery.tables import FoundWalkRow
from service.http.resources import open_engine
from service.job_types.footage import clip_in
from service.jobs.findings import FORGOTTEN, WALK, note_listing
from service.jobs.job import Job, JobEvent, Status
from service.jobs.queue import JobQueue
from service.privacy.erasure_transactions import erase_gallery, erase_subject
from service.privacy.listings import forget_old
from service.recognition.footage_reader import At, Message, Part, reading
from service.recognition.footage_search import Position
from service.storage.database import new_id, now
from service.storage.encryption import new_secret
from tests.e2e.deployment import children
from tests.models.footage.clips import COLUMNS, crossing, encode, scene
from tests.service.jobs.workers import worker_of
from tests.service.requests import enrol, problem
from tests.service.server import Serve, settings_for

SCENE = {"segmenter": "background"}
REQUEST = {"gallery": "default", "top_k": 5, "filter": None, "keep_minutes": 60}
LISTED = {"walk", "track", "from_s", "to_s", "frames", "quality", "decision", "threshold",
          "candidates"}  # fmt: skip


@cache
def clip() -> bytes:
    """One person passes, and then another one."""
    first = crossing((1, -60.0, COLUMNS + 60.0), frames=75)
    second = crossing((3, -60.0, COLUMNS + 60.0), frames=75)
    return encode([*first, *[scene()] * 15, *second])


@cache
def passing(person: int) -> bytes:
    return encode(crossing((person, -60.0, COLUMNS + 60.0), frames=75))


@pytest.fixture
def settings(tmp_path: Path, models: Path) -> Settings:
    return settings_for(tmp_path / "data", models, **SCENE)


def send(client: httpx.Client, data: bytes, **fields: str) -> httpx.Response:
    return client.post("/jobs/footage", data=fields, files={"footage": ("hall.mp4", data)})


def submitted(settings: Settings, engine: Engine, data: bytes) -> Job:
    """A job as the route queues it."""
    job_id = new_id()
    path = clip_in(settings.jobs_dir / job_id)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return JobQueue.of(engine, settings).enqueue(
        "footage", REQUEST, job_id=job_id,
        in_transaction=lambda session, job: note_listing(session, "default", job.id),
    )  # fmt: skip


def ran(settings: Settings, engine: Engine, data: bytes) -> Job:
    job = submitted(settings, engine, data)
    assert worker_of(settings, engine).run_one()
    return JobQueue.of(engine, settings).get(job.id)


def walk_events(settings: Settings, engine: Engine, job: Job) -> list[JobEvent]:
    events = JobQueue.of(engine, settings).events(job.id)
    return [event for event in events if event.kind == WALK]


def kept(engine: Engine) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(FoundWalkRow)) or 0


def files_of(settings: Settings) -> bytes:
    names = (settings.database_file, Path(f"{settings.database_file}-wal"))
    return b"".join(path.read_bytes() for path in names if path.exists())


def test_a_job_lists_every_walk_and_a_listed_one_can_be_enrolled_once(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve(**SCENE)
    assert enrol(client, "anna", passing(1)).status_code == 201
    answer = send(client, clip(), top_k="3", keep_minutes="5")
    assert answer.status_code == 202, answer.text
    queued = answer.json()
    assert answer.headers["location"] == f"/jobs/{queued['id']}"
    clip_file = clip_in(settings.jobs_dir / queued["id"])
    assert clip_file.stat().st_mode & 0o777 == 0o600
    assert worker_of(settings, engine).run_one()
    job = client.get(f"/jobs/{queued['id']}").json()
    assert job["status"] == "succeeded", job["error"]
    result = job["result"]
    first, second = result["walks"]
    assert set(first) == LISTED
    assert 0 < first["from_s"] < first["to_s"] < 3.5 < second["from_s"] < second["to_s"]
    assert first["track"] != second["track"]
    assert first["candidates"][0]["subject_id"] == "anna"
    assert first["candidates"][0]["rank"] == 1
    assert (result["segmenter"], result["nobody"]) == ("background", None)
    assert result["seconds"] == pytest.approx(6.6, abs=0.2)
    told = [event.data for event in JobQueue.of(engine, settings).events(queued["id"])
            if event.kind == WALK]  # fmt: skip
    assert told == result["walks"]
    assert not clip_file.exists()  # nothing of the clip is left

    fields = {"subject_id": "berta", "walk": second["walk"], "accept_conflict": "true"}
    enrolled = client.post("/enroll", data=fields)
    assert enrolled.status_code == 201, enrolled.text
    assert enrolled.json()["sequences"][0]["frames"] == second["frames"]
    gone = problem(client.post("/enroll", data=fields), 404)
    assert gone["type"] == "/problems/walk-not-found"
    lines = client.get("/audit").text
    assert lines.count(f'"job_id": "{queued["id"]}"') == 3  # that it was queued, and each walk


def test_what_no_job_can_do_is_refused_when_it_is_sent(serve: Serve, settings: Settings) -> None:
    client = serve(**SCENE, max_footage_bytes=200_000)
    missing = problem(send(client, b"a clip", gallery="none"), 404)
    assert missing["type"] == "/problems/gallery-not-found"
    for fields in ({"top_k": "0"}, {"keep_minutes": "0"}, {"keep_minutes": "10081"},
                   {"filter": "[1]"}, {"colour": "red"}):  # fmt: skip
        problem(send(client, b"a clip", **fields), 422)
    assert problem(send(client, bytes(300_000)), 413)["type"] == "/problems/request-too-large"
    assert not settings.jobs_dir.exists() or not list(settings.jobs_dir.iterdir())
    both = {"subject_id": "anna", "walk": "x"}
    files = {"sequence": ("a.mp4", passing(1))}
    problem(client.post("/enroll", data=both, files=files), 422)
    problem(client.post("/enroll", data={"subject_id": "anna"}), 422)
    problem(client.post("/enroll", data=both), 404)


def test_a_cancelled_job_that_had_not_begun_leaves_no_clip(
    serve: Serve, settings: Settings
) -> None:
    client = serve(**SCENE)
    job_id = send(client, b"a clip").json()["id"]
    assert clip_in(settings.jobs_dir / job_id).exists()
    assert client.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert not clip_in(settings.jobs_dir / job_id).exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x00\x00\x18ftypmp42 and then nothing of a video", "video"),
        (b"GIF89a", "no footage"),
        (b"", "empty"),
        (clip()[: len(clip()) // 2], "video"),
    ],
    ids=["garbage", "a picture", "nothing", "half of a clip"],
)
def test_a_clip_that_is_none_fails_the_job_with_one_sentence(
    settings: Settings, engine: Engine, data: bytes, reason: str
) -> None:
    job = ran(settings, engine, data)
    assert job.status is Status.FAILED
    assert job.attempts == 1  # it would not get better
    assert reason in str(job.error)
    assert "Traceback" not in str(job.error)


def test_a_clip_in_which_nobody_walks_says_what_was_seen(
    settings: Settings, engine: Engine
) -> None:
    job = ran(settings, engine, encode([scene()] * 40))
    assert job.result is not None, job.error
    assert job.result["walks"] == []
    assert "nobody was seen" in job.result["nobody"]


def test_a_job_that_is_killed_begins_again_and_lists_no_walk_twice(
    settings: Settings, engine: Engine
) -> None:
    job = submitted(settings, engine, clip())
    worker = [sys.executable, "-m", "service", "worker", "--data-dir", str(settings.data_dir)]
    environment = {
        **os.environ,
        "GAITID_SHIPPED_MODELS_DIR": str(settings.shipped_models_dir),
        "GAITID_SEGMENTER": "background",
        "GAITID_LEASE_SECONDS": "2",
    }
    first = subprocess.Popen(worker, env=environment)
    try:
        until(lambda: len(walk_events(settings, engine, job)) == 1)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    second = subprocess.Popen(worker, env=environment)
    try:
        until(lambda: JobQueue.of(engine, settings).get(job.id).status.final)
    finally:
        second.terminate()
        second.wait()
    ended = JobQueue.of(engine, settings).get(job.id)
    assert ended.result is not None, ended.error
    assert ended.attempts == 2
    walks = ended.result["walks"]
    assert len({walk["walk"] for walk in walks}) == len({walk["from_s"] for walk in walks}) == 2
    assert [event.data for event in walk_events(settings, engine, job)] == walks
    assert kept(engine) == 2


def test_that_its_reader_is_killed_is_no_fault_of_the_clip(
    settings: Settings, tmp_path: Path
) -> None:
    clip_file = tmp_path / "clip"
    clip_file.write_bytes(with_pauses())
    with reading(clip_file, settings) as messages:
        next(messages)
        for child in children(os.getpid()):
            if b"footage_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
        with pytest.raises(Unavailable, match="the process that reads the clip was killed"):
            list(messages)


@cache
def with_pauses() -> bytes:
    """Somebody passes three times, as masks, half a minute apart; every picture is whole."""
    walk = crossing((1, -60.0, COLUMNS + 60.0), frames=50, masks=True)
    once = [*walk, *[np.zeros_like(walk[0])] * 6]
    times = [*np.arange(50) / 25, *range(5, 35, 5)]
    every = [round(pass_ * 35.0 + second, 3) for pass_ in range(3) for second in times]
    return encode(once * 3, times=every, codec="mjpeg")


def test_after_each_part_of_a_clip_the_walks_are_as_if_nothing_had_ended(
    settings: Settings, tmp_path: Path
) -> None:
    clip_file = tmp_path / "clip"
    clip_file.write_bytes(with_pauses())

    def said(begin: Part | None = None) -> list[Message]:
        with reading(clip_file, settings, begin) as messages:
            return [message for message in messages if not isinstance(message, At)]

    whole = said()
    parts = [number for number, message in enumerate(whole) if isinstance(message, Part)]
    assert len(parts) >= 3
    for number in (parts[0], parts[-1]):
        rest = said(cast(Part, whole[number]))
        assert [str(message) for message in rest] == [str(one) for one in whole[number + 1 :]]


def test_an_attempt_goes_on_where_the_one_before_was_killed(
    settings: Settings, engine: Engine
) -> None:
    """The position that one attempt saved, the clip's beginning damaged since: the next one."""
    job = submitted(settings, engine, with_pauses())
    clip_file = clip_in(settings.jobs_dir / job.id)
    position = clip_file.with_name("position.json")
    saved: list[bytes] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            if position.exists() and (now := position.read_bytes()) not in saved:
                saved.append(now)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert worker_of(settings, engine).run_one()
    finally:
        ended.set()
        watching.join()
    whole = JobQueue.of(engine, settings).get(job.id)
    assert whole.result is not None, whole.error
    assert len(whole.result["walks"]) == 3
    assert not position.exists()
    first = next(one for one in map(Position.model_validate_json, saved) if one.walks == 1)
    assert 3 < first.part.seconds < 35

    data = bytearray(with_pauses())
    data[len(data) // 20 : len(data) // 4] = bytes(len(data) // 4 - len(data) // 20)
    again = submitted(settings, engine, bytes(data))
    clip_in(settings.jobs_dir / again.id).with_name("position.json").write_text(
        first.model_dump_json()
    )
    assert worker_of(settings, engine).run_one()
    rest = JobQueue.of(engine, settings).get(again.id)
    assert rest.result is not None, rest.error
    assert [{**walk, "walk": ""} for walk in rest.result["walks"]] == [
        {**walk, "walk": ""} for walk in whole.result["walks"][1:]
    ]
    assert {**rest.result, "walks": []} == {**whole.result, "walks": []}


def until(reached: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def with_anna(serve: Serve) -> None:
    client = serve(**SCENE)
    assert enrol(client, "anna", passing(1)).status_code == 201
    assert enrol(client, "berta", passing(3)).status_code == 201


def decided(engine: Engine, settings: Settings, job: Job, threshold: float) -> None:
    """Have a job's first walk taken for its first candidate, and the second for nobody."""
    from service.jobs.tables import JobEventRow, JobRow

    with Session(engine) as session, session.begin():
        rows = session.scalars(
            select(JobEventRow).where(JobEventRow.job_id == job.id).order_by(JobEventRow.sequence)
        ).all()
        walks = [row for row in rows if row.kind == WALK]
        for row, decision in zip(walks, ("match", "no_match"), strict=True):
            row.data = {**row.data, "decision": decision, "threshold": threshold}
        session.flush()
        result = {**(job.result or {}), "walks": [row.data for row in walks]}
        session.get_one(JobRow, job.id).result = result
        rows[-1].data = {**rows[-1].data, "result": result}


def test_who_is_erased_is_named_by_no_listing_and_the_walk_that_was_theirs_is_gone(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    with_anna(serve)
    job = ran(settings, engine, clip())
    assert job.result is not None, job.error
    decided(engine, settings, job, 0.5)
    first, second = job.result["walks"]
    whose = first["candidates"][0]["subject_id"]
    erase_subject(engine, "default", whose)
    queue = JobQueue.of(engine, settings)
    after = queue.get(job.id)
    assert after.result is not None
    (left,) = after.result["walks"]
    assert left["walk"] == second["walk"]
    (other,) = {"anna", "berta"} - {whose}
    assert [(one["rank"], one["subject_id"]) for one in left["candidates"]] == [(1, other)]
    events = queue.events(job.id)
    assert [event.data for event in events if event.kind == WALK] == [FORGOTTEN, left]
    assert whose not in str([event.data for event in events])
    assert kept(engine) == 1
    erase_gallery(engine, "default", keep=True)
    emptied = queue.get(job.id)
    assert emptied.result is not None
    assert emptied.result["walks"] == []
    assert kept(engine) == 0


def test_nothing_that_was_listed_is_kept_after_its_time(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    with_anna(serve)
    job = ran(settings, engine, clip())
    assert job.finished_at is not None, job.error
    assert job.result is not None, job.error
    end = job.finished_at + timedelta(minutes=60)
    assert forget_old(engine, end - timedelta(seconds=1)) == 0
    assert kept(engine) == 2
    assert forget_old(engine, end) == 1
    assert kept(engine) == 0
    after = JobQueue.of(engine, settings).get(job.id)
    assert after.result is not None
    assert after.result["walks"] == []
    assert "anna" not in str([event.data for event in JobQueue.of(engine, settings).events(job.id)])
    assert forget_old(engine, end) == 0


def test_a_running_service_forgets_what_was_listed(
    serve: Serve, settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ran(settings, engine, passing(1))
    assert job.result is not None, job.error
    past = now() - timedelta(minutes=1)
    monkeypatch.setattr("service.recognition.found_walks.kept_until", lambda _job: past)
    client = serve(**SCENE)
    fields = {"subject_id": "anna", "walk": job.result["walks"][0]["walk"]}
    problem(client.post("/enroll", data=fields), 404)  # before the next sweep, too
    assert kept(engine) == 1
    monkeypatch.setattr("service.jobs.findings.kept_until", lambda _job: past)
    serve(**SCENE, sweep_seconds=0.05)
    until(lambda: kept(engine) == 0, 20)


def test_found_walks_are_sealed_as_enrolled_ones_are(tmp_path: Path, models: Path) -> None:
    secret = new_secret()
    settings = settings_for(tmp_path / "data", models, **SCENE, encryption_keys=secret)
    engine = open_engine(settings)
    GalleryStore(engine).ensure("default")
    environment = {"GAITID_ENCRYPTION_KEYS": secret}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        job = ran(settings, engine, passing(1))
    assert job.result is not None, job.error
    from service.gallery.found_walks import read
    from service.gallery.reencryption import holdings, reencrypt
    from service.gallery.sealing import packed

    (listed,) = job.result["walks"]
    walk = read(engine, listed["walk"])
    assert len(walk.silhouettes) == listed["frames"]
    assert packed(walk.silhouettes)[:200] not in files_of(settings)
    engine.dispose()
    newer = settings_for(tmp_path / "data", models, encryption_keys=f"{new_secret()},{secret}")
    engine = open_engine(newer)
    assert reencrypt(engine) == 1
    (held,) = holdings(engine)
    assert (held.sequences, held.embeddings) == (1, 0)
    assert (read(engine, listed["walk"]).silhouettes == walk.silhouettes).all()
    engine.dispose()


def test_a_key_needs_both_scopes(serve: Serve, settings: Settings, engine: Engine) -> None:
    from service.access.keys import Scope, create_key

    client = serve(**SCENE)
    for scopes, status in (({Scope.JOBS}, 403), ({Scope.IDENTIFY}, 403),
                           ({Scope.JOBS, Scope.IDENTIFY}, 202)):  # fmt: skip
        _, token = create_key(engine, scopes)
        client.headers["Authorization"] = f"Bearer {token}"
        assert send(client, b"a clip").status_code == status

"""What is too old goes by itself."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import Engine, event

from service.access.keys import Scope, create_key, revoke_key
from service.foundation.settings import Settings
from service.gallery.cache import GalleryCache
from service.gallery.listing import all_enrolled
from service.gallery.live_index import LiveIndex
from service.gallery.memory_index import MemoryIndex
from service.gallery.records import Embedding
from service.gallery.store import GalleryStore
from service.jobs import scratch
from service.jobs.queue import JobQueue
from service.jobs.scratch import remove_folder
from service.privacy.erasure_transactions import erase_subject
from service.privacy.retention import Retention, Swept
from service.storage.database import now
from service.storage.kept_answers import Answer, IdempotencyStore, KeyLock
from service.storage.reserve import Reserve
from service.storage.writers import Writers
from tests.service.jobs.galleries import add, made_walk
from tests.service.jobs.galleries import enrol as enrol_some
from tests.service.requests import contents, enrol, identify, problem
from tests.service.server import Serve
from tests.service.walkers import walk

Sweep = Callable[..., Swept]
DAY = timedelta(days=1)


@pytest.fixture
def sweep(settings: Settings, store: GalleryStore) -> Iterator[Sweep]:
    writers = Writers()

    def run(at: datetime, **options: Any) -> Swept:
        options = {"galleries": GalleryCache(max_bytes=1), "clock": lambda: at, **options}
        reserve = Reserve(settings.reserve_file, settings.reserve_bytes)
        return asyncio.run(Retention(settings, store, writers, reserve=reserve, **options).sweep())

    yield run
    writers.close()


def create(store: GalleryStore, name: str, max_age_days: int | None) -> None:
    store.create(name, {}, max_age_days, lambda *_: None)


def test_what_is_older_than_the_gallery_keeps_it_goes_with_its_subject(
    store: GalleryStore, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(store, "week", 7)
    create(store, "ever", None)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for day, subject in ((0, "old"), (0, "both"), (5, "both"), (5, "young")):
        moment = start + day * DAY
        monkeypatch.setattr("service.gallery.store.now", lambda moment=moment: moment)
        enrol_some(store, "week", subject, 2)
        enrol_some(store, "ever", subject, 2)
    _, revision, _ = store.head("week")

    assert sweep(start + 7 * DAY) == Swept()
    assert store.head("week")[1] == revision  # nothing happened, so nobody has to follow
    assert sweep(start + 7 * DAY + timedelta(seconds=1)) == Swept(sequences=4, subjects=1)
    assert store.head("week")[1] == revision + 1
    assert (store.gallery("week").subjects, store.gallery("week").sequences) == (2, 4)
    assert sweep(start + 7.5 * DAY) == Swept()
    assert sweep(start + 13 * DAY) == Swept(sequences=4, subjects=2)
    assert store.gallery("ever").sequences == 8


def test_what_a_client_says_of_when_a_walk_was_filmed_is_not_its_age(
    store: GalleryStore, sweep: Sweep
) -> None:
    create(store, "week", 7)
    walk = made_walk(np.ones((2, 4), np.float32))
    add(store, "week", "a", [walk], "digest", {"captured_at": "1999-01-01T00:00:00Z"})
    assert sweep(now() + 6 * DAY) == Swept()
    assert sweep(now() + 8 * DAY) == Swept(sequences=1, subjects=1)


def test_a_sweep_lets_go_of_what_every_model_made_of_the_walks(
    store: GalleryStore, sweep: Sweep
) -> None:
    create(store, "week", 7)
    enrol_some(store, "week", "a", 3)
    galleries = GalleryCache(max_bytes=1 << 20)
    gallery_id, newest, _ = store.head("week")
    indexes = []
    for digest in ("digest", "of another model"):
        index = MemoryIndex(2, 4, "cosine")
        galleries.replace(
            gallery_id, digest, LiveIndex(gallery_id, digest, index, store, embed_ones)
        )
        galleries.held(gallery_id)[digest].follow(newest)
        indexes.append(index)
    assert [len(index) for index in indexes] == [3, 3]
    assert sweep(now() + 8 * DAY, galleries=galleries) == Swept(sequences=3, subjects=1)
    assert [len(index) for index in indexes] == [0, 0]


def embed_ones(sequence_ids: Sequence[str]) -> dict[str, Embedding]:
    return {sequence_id: np.ones((2, 4), np.float32) for sequence_id in sequence_ids}


@pytest.mark.slow
def test_a_long_gallery_is_swept_in_pieces_and_by_several_at_once(
    store: GalleryStore, sweep: Sweep
) -> None:
    create(store, "week", 7)
    for subject in "abc":
        enrol_some(store, "week", subject, 11)
    later = now() + 8 * DAY
    with ThreadPoolExecutor(3) as processes:
        swept = list(processes.map(lambda _: sweep(later, sequences_at_once=7), range(3)))
    assert sum(one.sequences for one in swept) == 33
    assert sum(one.subjects for one in swept) == 3
    assert store.gallery("week").sequences == 0


@pytest.mark.sqlite
def test_a_sweep_empties_the_log_that_an_erasure_had_no_time_to_empty(
    settings: Settings,
    store: GalleryStore,
    sweep: Sweep,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create(store, "kept", None)
    enrol_some(store, "kept", "a-private-id", 1)
    with monkeypatch.context() as killed:
        killed.setattr("service.gallery.shredding.clear_traces", lambda _: None)
        erase_subject(store.engine, "kept", "a-private-id")
    log = settings.data_dir / "gaitid.sqlite-wal"
    assert b"a-private-id" in log.read_bytes()
    assert sweep(now()) == Swept()
    assert log.read_bytes() == b""


def test_answers_whose_time_is_over_go_in_pieces(engine: Engine, sweep: Sweep) -> None:
    kept = IdempotencyStore(engine, all_enrolled)
    for number in range(17):
        lock = kept.acquire("", f"key-{number}", "f")
        assert isinstance(lock, KeyLock)
        kept.keep(lock, Answer(201, {}, "{}"))
    pieces: list[int] = []

    def count(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM idempotency "):
            pieces.append(cursor.rowcount)

    event.listen(engine, "after_cursor_execute", count)
    assert sweep(now() + 0.9 * DAY, answers_at_once=7) == Swept()
    assert sweep(now() + 1.1 * DAY, answers_at_once=7) == Swept(answers=17)
    assert pieces == [0, 7, 7, 3]


def test_whoever_reads_the_log_hears_once_of_a_key_that_expires_soon(
    settings: Settings, store: GalleryStore, caplog: pytest.LogCaptureFixture
) -> None:
    later = now() + 30 * DAY
    soon, _ = create_key(store.engine, [Scope.ADMIN], "the gate", expires_at=later + 3 * DAY)
    for when in (later + 30 * DAY, later - DAY, None):
        create_key(store.engine, [Scope.ADMIN], expires_at=when)
    revoked, _ = create_key(store.engine, [Scope.ADMIN], expires_at=later + 3 * DAY)
    revoke_key(store.engine, revoked.key_id)
    quick = settings.model_copy(update={"sweep_seconds": 0.01})
    writers = Writers()
    reserve = Reserve(settings.reserve_file, settings.reserve_bytes)
    galleries = GalleryCache(max_bytes=1)
    retention = Retention(quick, store, writers, galleries, reserve, clock=lambda: later)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(retention.run(), 0.5))
    writers.close()
    (record,) = [one for one in caplog.records if one.message == "an API key expires soon"]
    assert record.key_id == soon.key_id  # type: ignore[attr-defined]
    assert "the gate" not in caplog.text


def test_the_folder_of_an_ended_job_goes_after_its_days_and_no_other(
    settings: Settings, engine: Engine, sweep: Sweep
) -> None:
    queue = JobQueue.of(engine, settings)
    ended, running, _queued = (queue.enqueue("evaluate", {}) for _ in range(3))
    for job in (ended, running):
        lease = queue.lease()
        assert lease is not None
        assert lease.job.id == job.id
        (settings.jobs_dir / job.id / "scratch").mkdir(parents=True)
        (settings.jobs_dir / job.id / "log.txt").write_text("…")
        if job is ended:
            queue.fail(lease, "no reason")
    (settings.jobs_dir / "somebody's").mkdir()

    assert sweep(now() + 29 * DAY) == Swept()
    assert not (settings.jobs_dir / ended.id / "scratch").exists()  # a killed worker's
    assert (settings.jobs_dir / ended.id / "log.txt").exists()
    assert sweep(now() + 31 * DAY) == Swept(job_folders=1)
    assert {path.name for path in settings.jobs_dir.iterdir()} == {running.id, "somebody's"}
    assert (settings.jobs_dir / running.id / "scratch").exists()
    assert queue.get(ended.id).error == "no reason"  # the job itself is still known


def test_what_a_killed_upload_or_removal_of_a_model_left_goes_after_a_day(
    settings: Settings, sweep: Sweep
) -> None:
    for name in (".incoming-1", ".removed-2", "mine"):
        (settings.models_dir / name).mkdir(parents=True)
        (settings.models_dir / name / "weights.safetensors").write_bytes(b"of somebody")
    sweep(now() + 0.9 * DAY)
    assert len(list(settings.models_dir.iterdir())) == 3
    sweep(now() + 1.1 * DAY)
    assert [path.name for path in settings.models_dir.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_cleared_keeps_no_other_from_it(
    settings: Settings,
    engine: Engine,
    sweep: Sweep,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = JobQueue.of(engine, settings)
    jobs = [queue.enqueue("evaluate", {}) for _ in range(3)]
    for job in jobs:
        (settings.jobs_dir / job.id / "scratch").mkdir(parents=True)
        queue.cancel(job.id)
    stuck = settings.jobs_dir / jobs[1].id / "scratch"

    def refusing(folder: Path) -> None:
        if folder == stuck:
            raise PermissionError(errno.EACCES, "not yours")
        remove_folder(folder)

    monkeypatch.setattr(scratch, "remove_folder", refusing)
    assert sweep(now()) == Swept()
    assert list(settings.jobs_dir.glob("*/scratch")) == [stuck]


def test_a_running_service_sweeps_and_says_how_much(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve(sweep_seconds=0.05)
    made = client.post("/galleries", json={"name": "lab", "max_age_days": 30}).json()
    assert made["max_age_days"] == 30
    enrol(client, "a-private-id", walk(1), gallery="lab")
    assert len(identify(client, walk(1), gallery="lab").json()["candidates"]) == 1
    with caplog.at_level(logging.INFO):
        monkeypatch.setattr("service.gallery.store.now", lambda: now() - 31 * DAY)
        enrol(client, "another-private-id", walk(2), gallery="lab")
        deadline = time.monotonic() + 20
        while client.get("/galleries/lab").json()["subjects"] > 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while not [record for record in caplog.records if record.message == "swept"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    (record,) = [record for record in caplog.records if record.message == "swept"]
    assert (record.sequences, record.subjects) == (1, 1)  # type: ignore[attr-defined]
    assert "private" not in caplog.text
    assert set(contents(client, "lab")) == {"", "a-private-id"}
    listed = identify(client, walk(2), gallery="lab").json()["candidates"]
    assert [item["subject_id"] for item in listed] == ["a-private-id"]


def test_how_long_a_gallery_keeps_its_sequences_can_be_changed(shared: httpx.Client) -> None:
    assert shared.get("/galleries/default").json()["max_age_days"] is None
    answer = shared.patch("/galleries/default", json={"max_age_days": 90})
    assert answer.status_code == 200
    assert answer.json() == shared.get("/galleries/default").json()
    assert answer.json()["max_age_days"] == 90
    # An emptied default keeps what it gets for as long as before.
    shared.delete("/galleries/default")
    assert shared.get("/galleries/default").json()["max_age_days"] == 90
    assert shared.patch("/galleries/default", json={"max_age_days": None}).status_code == 200
    assert shared.get("/galleries").json()["items"][0]["max_age_days"] is None
    for age in (0, 36501, "9 days", "9", True):  # true is no day after which all is erased
        problem(shared.patch("/galleries/default", json={"max_age_days": age}), 422)
        problem(shared.post("/galleries", json={"name": "y", "max_age_days": age}), 422)
    problem(shared.patch("/galleries/default", json={}), 422)
    problem(shared.patch("/galleries/default", json={"max_age_days": 1, "name": "x"}), 422)
    problem(shared.patch("/galleries/nope", json={"max_age_days": 1}), 404)
    problem(shared.post("/galleries", json={"name": "y", "max_age_days": -1}), 422)

"""Where an erasure reaches: every file of the data folder, read as raw bytes; and what it says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session

from service.foundation.settings import Settings
from service.gallery.sealing import Sealing
from service.gallery.store import GalleryStore
from service.gallery.tables import EmbeddingRow, SequenceRow
from service.jobs.job import Status
from service.jobs.queue import ERASED, JobQueue, Lease
from service.jobs.scratch import scratch
from service.privacy.erasure_transactions import erase_older
from service.serving.lineage import BrokenKey, TrainedSubjectRow, TrainingRecord
from service.storage.database import now, open_database, writing
from service.transfer.export import export_gallery
from tests.service.requests import enrol, identify
from tests.service.server import Serve
from tests.service.statements import plans
from tests.service.walkers import walk

NAME, PLACE = "a-very-peculiar-name", "a very peculiar place"
Learning = tuple[TrainingRecord, Session]
ON_DEFAULT = {"dataset": {"gallery": "default"}}


@pytest.fixture
def data(settings: Settings) -> Path:
    return settings.data_dir


@pytest.fixture
def learning(data: Path, serve: Serve, engine: Engine) -> Iterator[Learning]:
    """A deployment's record of who trained which model, and a transaction that adds to it."""
    serve()
    with Session(writing(engine)) as session, session.begin():
        yield TrainingRecord.of(data), session


def erase(client: httpx.Client, what: str, sequence_id: str) -> dict[str, Any]:
    """Erase the person, their one sequence or the whole gallery; the receipt."""
    address = {
        "sequence": f"/sequences/{sequence_id}",
        "subject": f"/subjects/{NAME}",
        "gallery": "/galleries/default",
    }[what]
    receipt: dict[str, Any] = client.delete(address).json()
    return receipt


def traces(engine: Engine) -> dict[str, bytes]:
    """Bytes that only this person has left: as they are kept, and as they are exported."""
    query = (
        select(SequenceRow.silhouettes, EmbeddingRow.vector)
        .join(EmbeddingRow, EmbeddingRow.sequence_id == SequenceRow.id)
        .where(SequenceRow.subject_id == NAME)
    )
    with Session(engine) as session:
        packed, vector = session.execute(query).one()
    frames = Sealing().silhouettes("", packed, None).tobytes()
    middle = len(packed) // 2
    person = frames.index(b"\xff")
    return {
        "name": NAME.encode(),
        "place": PLACE.encode(),
        "silhouettes": packed[middle : middle + 48],
        "embedding": vector[:48],
        "frames": frames[person : person + 4096],
    }


def found(data: Path, marks: dict[str, bytes]) -> dict[str, set[str]]:
    """In which files each of them is."""
    files = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    return {
        what: {path.name for path, content in files.items() if mark in content}
        for what, mark in marks.items()
    }


def begun(queue: JobQueue, engine: Engine, data: Path, name: str) -> Lease:
    """A job that a worker has begun, with a copy of the gallery's walks in its folder."""
    job = queue.enqueue("distill", {**ON_DEFAULT, "name": name})
    lease = queue.lease()
    assert lease is not None
    assert lease.job.id == job.id
    folder = scratch(data / "jobs" / job.id)
    folder.mkdir(parents=True)
    export_gallery(engine, "default", folder / "gallery.zip")
    # Packs have the frames as they are.
    with Session(engine) as session:
        kept = session.scalars(select(SequenceRow.silhouettes)).all()
    frames = b"".join(Sealing().silhouettes("", packed, None).tobytes() for packed in kept)
    (folder / "dataset.pack").mkdir()
    (folder / "dataset.pack" / "frames.bin").write_bytes(frames)
    (folder / "dataset.pack" / "index.json").write_text(f'["{NAME}"]')
    return lease


@pytest.mark.parametrize("by", ["sequence", "subject", "gallery"])
@pytest.mark.sqlite
def test_nothing_of_an_erased_person_is_left_in_any_file(
    serve: Serve, data: Path, engine: Engine, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    client = serve()
    queue = JobQueue(engine, lease_seconds=30.0, max_attempts=3)
    client.headers["Idempotency-Key"] = "enrol"
    fields = {"subject_id": NAME, "metadata": f'{{"place": "{PLACE}"}}'}
    answer = client.post("/enroll", data=fields, files={"sequence": ("w.npz", walk(1))})
    (sequence,) = answer.json()["sequences"]
    client.headers["Idempotency-Key"] = "identify"
    assert NAME in identify(client, walk(1)).text
    del client.headers["Idempotency-Key"]
    enrol(client, "bert", walk(2))
    marks = traces(engine)
    running = begun(queue, engine, data, "running")
    queue.fail(begun(queue, engine, data, "left-behind"), "its worker was killed then")
    leases = [begun(queue, engine, data, name) for name in ("crashed", "released")]
    crashed = queue.retry(leases[0], "its process was killed").id
    released = queue.release(leases[1]).id  # its worker was stopped; not counted as an attempt
    queued = queue.enqueue("evaluate", {**ON_DEFAULT, "model": "default"}).id
    before = found(data, marks)
    assert "index.json" in before["name"]
    assert len(list((data / "jobs").glob("*/scratch/gallery.zip"))) == 4  # compressed
    assert all(before.values()), before

    receipt = erase(client, by, sequence["sequence_id"])

    assert found(data, marks) == {what: set() for what in marks}
    assert receipt["jobs"] == [running.job.id, crashed, released]
    assert queue.get(running.job.id).status is Status.CANCELLING  # until its worker notices
    assert {queue.get(job_id).status for job_id in (crashed, released)} == {Status.CANCELLED}
    assert {queue.get(job_id).error for job_id in receipt["jobs"]} == {ERASED}
    assert queue.get(queued).status is Status.QUEUED  # it will find what is enrolled then
    assert list((data / "jobs").glob("*/scratch")) == []
    assert NAME not in caplog.text
    assert PLACE not in caplog.text


def test_an_answer_that_names_an_erased_sequence_is_forgotten_though_its_subject_stays(
    serve: Serve, data: Path
) -> None:
    client = serve()
    client.headers["Idempotency-Key"] = "one"
    first = enrol(client, "anna", walk(1)).json()["sequences"][0]["sequence_id"]
    client.headers["Idempotency-Key"] = "two"
    second = enrol(client, "anna", walk(1, phase=1)).json()["sequences"][0]["sequence_id"]
    client.headers["Idempotency-Key"] = "make"
    client.post("/galleries", json={"name": "lab", "metadata": {"place": PLACE}})
    client.delete(f"/sequences/{first}")
    client.headers["Idempotency-Key"] = "two"
    again = enrol(client, "anna", walk(1, phase=1))
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["sequences"][0]["sequence_id"] == second
    client.headers["Idempotency-Key"] = "one"
    assert "idempotency-replayed" not in enrol(client, "anna", walk(1)).headers
    client.delete("/galleries/lab")
    assert found(data, {"place": PLACE.encode()}) == {"place": set()}


def test_a_job_that_works_on_something_else_is_left_alone(serve: Serve, engine: Engine) -> None:
    client = serve()
    client.post("/galleries", json={"name": "lab"})
    enrol(client, "anna", walk(1))
    queue = JobQueue(engine, lease_seconds=30.0, max_attempts=3)
    for dataset in ("default", {"gallery": "lab"}):
        queue.enqueue("evaluate", {"model": "default", "dataset": dataset})
        assert queue.lease() is not None
    assert client.delete("/subjects/anna").json()["jobs"] == []
    assert {job.status for job in queue.page(status=None, limit=9, cursor=None).items} == {
        Status.RUNNING
    }


def test_a_receipt_names_the_models_that_learned_from_the_erased(
    serve: Serve, data: Path, engine: Engine
) -> None:
    client = serve()
    client.post("/galleries", json={"name": "lab"})
    for subject in ("anna", "bert"):
        (last,) = enrol(client, subject, walk(1)).json()["sequences"]
        enrol(client, subject, walk(1), gallery="lab")
    record = TrainingRecord.of(data)
    with Session(writing(engine)) as session, session.begin():
        record.add(session, "first", "default", ["anna", "bert"], [])
        record.add(session, "other", "lab", ["anna"], [])
        record.add(session, "heir", None, [], ["first", "default"])
        record.add(session, "stranger", "default", ["carl"], ["default"])

    assert client.delete("/subjects/anna").json()["models"] == ["first", "heir"]
    # Enrolled and erased again: the record does not need the row that went.
    enrol(client, "anna", walk(3))
    assert client.delete("/subjects/anna").json()["models"] == ["first", "heir"]
    assert client.delete(f"/sequences/{last['sequence_id']}").json()["models"] == ["first", "heir"]
    assert client.delete("/galleries/lab").json()["models"] == ["other"]
    enrol(client, "dora", walk(4))
    assert client.delete("/subjects/dora").json()["models"] == []
    assert found(data, {"anna": b"anna", "bert": b"bert"}) == {"anna": set(), "bert": set()}


def test_after_the_key_was_lost_a_receipt_names_too_many_models_rather_than_too_few(
    data: Path, learning: Learning
) -> None:
    record, session = learning
    key = (data / "receipts.key").read_bytes()
    assert (data / "receipts.key").stat().st_mode & 0o077 == 0
    assert TrainingRecord.of(data) is not record  # both read the same file
    assert (data / "receipts.key").read_bytes() == key
    record.add(session, "before", "default", ["anna"], [])
    (data / "receipts.key").unlink()
    lost = TrainingRecord.of(data)
    lost.add(session, "since", "default", ["bert"], [])
    assert lost.models(session, "default", ["carl"]) == ("before",)
    assert lost.models(session, "default", ["bert"]) == ("before", "since")
    assert lost.models(session, "default", []) == ()
    (data / "receipts.key").write_bytes(b"short")
    with pytest.raises(BrokenKey, match="Restore it"):
        TrainingRecord.of(data)


@pytest.mark.sqlite
def test_what_an_erasure_asks_of_the_record_is_found_by_indexes_and_once(
    engine: Engine, learning: Learning
) -> None:
    record, session = learning
    subjects = [f"s{number}" for number in range(1200)]
    record.add(session, "m", "default", subjects, [])
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *sent: asked.append(sent[2]))
    with plans(engine) as found:
        assert record.models(session, "default", subjects) == ("m",)
    steps = [step for plan in found.values() for step in plan]
    assert not [step for step in steps if step.startswith("SCAN")], found
    searches = [step for step in steps if step.startswith("SEARCH")]
    assert any("ix_trained_subject_hash" in step for step in searches), found
    ranges = [step for step in searches if "ix_trained_subject_key" in step]
    assert len(ranges) == 2, found
    assert sum("key_id <" in statement for statement in asked) == 1


def test_the_record_keeps_no_order_and_one_row_a_subject(learning: Learning) -> None:
    record, session = learning
    record.add(session, "m", "default", ["b", "a", "c", "a"], [])
    record.add(session, "m", "default", ["b", "a", "c"], ["m"])
    hashes = list(session.scalars(select(TrainedSubjectRow.subject_hash)))
    assert len(hashes) == 3
    assert hashes == sorted(hashes)


@pytest.mark.parametrize("by", ["subject", "sequence", "gallery", "age"])
@pytest.mark.sqlite
def test_a_database_that_was_erased_from_is_rewritten_by_the_next_sweep(
    serve: Serve, engine: Engine, data: Path, by: str
) -> None:
    record = open_database(f"sqlite:///{data / 'audit.sqlite'}")

    def erasures(database: Engine) -> int:
        with database.connect() as connection:
            count: int = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        return count

    client = serve()
    sequence = enrol(client, NAME, walk(1)).json()["sequences"][0]["sequence_id"]
    assert (erasures(engine), erasures(record)) == (0, 0)
    if by == "age":
        client.patch("/galleries/default", json={"max_age_days": 1})
        gallery_id, _, _ = GalleryStore(engine).head("default")
        assert erase_older(engine, gallery_id, now() + timedelta(days=2), 10) == (1, 1)
    else:
        erase(client, by, sequence)
    assert erasures(engine) == 1
    serve()  # another process: it sweeps and tidies as it starts
    deadline = time.monotonic() + 20
    while erasures(engine) or erasures(record):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    record.dispose()

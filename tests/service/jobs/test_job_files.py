"""Jobs that hosts take over from each other, which have a store and a database in common."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from service.foundation.errors import Unavailable
from service.foundation.settings import Settings
from service.jobs.job import Job, Status
from service.jobs.job_files import JobFiles
from service.jobs.job_type import Outcome, Step, partial
from service.jobs.queue import JobQueue
from service.jobs.scratch import scratch
from service.storage.database import new_id
from service.storage.encryption import new_secret
from service.storage.file_store import FileStore, open_store
from tests.e2e.deployment import until
from tests.service.jobs.fake_worker import fake_worker
from tests.service.jobs.workers import leased

OpenQueue = Callable[..., JobQueue]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    (tmp_path / "store").mkdir()
    opened = open_store(Settings(store=str(tmp_path / "store")))
    assert opened is not None
    return opened


@pytest.fixture
def files(store: FileStore) -> JobFiles:
    return JobFiles(store)


class TwoSteps:
    """Writes into its scratch, once, what its second step waits for a word to repeat."""

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        made = scratch(folder) / "made"
        first = f"import pathlib; pathlib.Path({str(partial(made))!r}).write_text({job.id!r})"
        second = (
            "import pathlib, time\n"
            f"while not pathlib.Path({str(job.request['word'])!r}).exists(): time.sleep(0.02)\n"
        )
        return [
            Step("first", (sys.executable, "-c", first), output=made),
            Step("second", (sys.executable, "-c", second)),
        ]

    def complete(self, job: Job, folder: Path) -> Outcome:
        return Outcome({"made": (scratch(folder) / "made").read_text(), "by": folder.parent.name})


def test_a_job_that_a_worker_leaves_goes_on_elsewhere_from_its_state(
    queue: JobQueue, files: JobFiles, store: FileStore, tmp_path: Path
) -> None:
    job = queue.enqueue("fake", {"steps": 40, "seconds": 0.1})
    first = fake_worker(queue, tmp_path / "one", files=files)
    running = threading.Thread(target=first.run_one)
    running.start()
    until(lambda: queue.get(job.id).progress.step >= 5, "five steps")
    first.stop()
    running.join()
    assert queue.get(job.id).status is Status.QUEUED
    assert list(store.keys(f"jobs/{job.id}")) == [f"jobs/{job.id}/1/run/state"]
    second = fake_worker(queue, tmp_path / "two", files=files)
    assert second.run_one()
    assert queue.get(job.id).status is Status.SUCCEEDED
    begun = [event.data["step"] for event in queue.events(job.id) if event.kind == "start"]
    assert begun[0] == 0
    assert begun[1] >= 5
    assert list(store.keys("jobs")) == []  # it has ended


def test_where_there_is_a_key_nothing_of_a_job_can_be_read_in_the_store(
    queue: JobQueue, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    secrets = [new_secret(), new_secret()]

    def files(*secrets: str) -> JobFiles:
        keys = SecretStr(",".join(secrets)) if secrets else None
        return JobFiles.of(Settings(store=str(tmp_path / "store"), encryption_keys=keys))

    clip = b"frames of somebody " * 100_000
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    scratch(here).mkdir(parents=True)
    (scratch(here) / "clip").write_bytes(clip)
    job = queue.enqueue("fake", {})
    files(secrets[0]).bring(job.id, here, scratch(here) / "clip")
    stored = [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(stored) == 2
    assert not any(b"somebody" in one or b"sha256" in one for one in stored)
    elsewhere.mkdir()
    lease = leased(queue)
    for wrong in (files(), files(secrets[1])):
        with pytest.raises(Unavailable):
            wrong.fetch(lease, elsewhere, lambda: None)
    files(secrets[1], secrets[0]).fetch(lease, elsewhere, lambda: None)
    assert (scratch(elsewhere) / "clip").read_bytes() == clip


KILLED = """
import sys
from pathlib import Path
from service.foundation.settings import Settings
from service.jobs.job_files import JobFiles
from service.jobs.queue import JobQueue
from service.storage.database import open_database
from tests.service.jobs.fake_worker import fake_worker
database, folders, store = sys.argv[1:]
queue = JobQueue(open_database(database), lease_seconds=1.0, max_attempts=3)
fake_worker(queue, Path(folders), files=JobFiles.of(Settings(store=store))).run()
"""


def test_a_job_whose_worker_is_killed_goes_on_elsewhere_from_the_last_state_in_the_store(
    open_queue: OpenQueue, database_url: str, files: JobFiles, store: FileStore, tmp_path: Path
) -> None:
    queue = open_queue(lease_seconds=1.0)
    job = queue.enqueue("fake", {"steps": 30, "seconds": 0.1})
    worker = subprocess.Popen(
        (sys.executable, "-c", KILLED, database_url, tmp_path / "one", tmp_path / "store")
    )
    until(lambda: list(store.keys(f"jobs/{job.id}")) != [], "a state in the store")
    until(lambda: queue.get(job.id).progress.step >= 12, "twelve steps")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    second = fake_worker(queue, tmp_path / "two", files=files)
    until(lambda: second.run_one() and queue.get(job.id).status.final, "the end")
    assert queue.get(job.id).status is Status.SUCCEEDED
    begun = [event.data["step"] for event in queue.events(job.id) if event.kind == "start"]
    assert 1 <= begun[1] <= queue.get(job.id).progress.step
    assert list(store.keys("jobs")) == []


def test_the_output_of_a_step_is_not_made_again_elsewhere(
    queue: JobQueue, files: JobFiles, store: FileStore, tmp_path: Path
) -> None:
    word = tmp_path / "word"
    job = queue.enqueue("two", {"word": str(word)})
    first = fake_worker(queue, tmp_path / "one", {"two": TwoSteps()}, files=files)
    running = threading.Thread(target=first.run_one)
    running.start()
    until(lambda: list(store.keys(f"jobs/{job.id}")) != [], "the output in the store")
    first.stop()
    running.join()
    made = tmp_path / "one" / job.id / "scratch" / "made"
    assert made.exists()  # of a host that comes back
    word.touch()
    key = f"jobs/{job.id}/1/scratch/made"
    (tmp_path / "other").write_text("kept")
    store.put(key, tmp_path / "other")  # to be told from one that is made anew
    second = fake_worker(queue, tmp_path / "two", {"two": TwoSteps()}, files=files)
    assert second.run_one()
    assert queue.get(job.id).result == {"made": "kept", "by": "two"}


def test_a_host_that_comes_back_drops_what_another_has_gone_on_from(
    queue: JobQueue, files: JobFiles, tmp_path: Path
) -> None:
    queue.enqueue("fake", {})
    one, two = tmp_path / "one", tmp_path / "two"

    def make(folder: Path, text: str) -> None:
        for name in ("run/state", "scratch/export", "scratch/pack"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def put(lease: object, folder: Path, *names: str) -> None:
        for name in names:
            files.keep(lease, folder, folder / name, lambda: None)  # type: ignore[arg-type]

    first = leased(queue)
    one.mkdir()
    files.fetch(first, one, lambda: None)
    make(one, "first")
    put(first, one, "run/state", "scratch/export")
    queue.release(first)
    again = leased(queue)
    make(one, "newer")  # saved before it was killed, and not put
    files.fetch(again, one, lambda: None)
    assert (one / "run/state").read_text() == "newer"
    queue.release(again)
    elsewhere = leased(queue)
    two.mkdir()
    files.fetch(elsewhere, two, lambda: None)
    assert (two / "run/state").read_text() == "first"
    assert not (two / "scratch/pack").exists()
    make(two, "second")
    put(elsewhere, two, "scratch/export")
    put(first, one, "run/state")  # by a worker that was presumed dead
    queue.release(elsewhere)
    back = leased(queue)
    files.fetch(back, one, lambda: None)
    assert (one / "scratch/export").read_text() == "second"
    assert not (one / "scratch/pack").exists()  # it was made of another export


def test_what_is_left_of_ended_jobs_is_swept_and_what_waits_is_not(
    queue: JobQueue, files: JobFiles, store: FileStore, tmp_path: Path
) -> None:
    waiting, ended = (queue.enqueue("fake", {}).id for _ in range(2))
    arriving, broken_off = new_id(), new_id()
    for job_id in (waiting, ended, arriving, broken_off):
        clip = tmp_path / "in" / job_id / "scratch" / "clip"
        clip.parent.mkdir(parents=True)
        clip.write_bytes(b"frames")
        files.bring(job_id, tmp_path / "in" / job_id, clip)
        assert not clip.exists()
    queue.cancel(ended)
    old = time.time() - 2 * 86_400
    for path in (tmp_path / "store" / "jobs" / broken_off).rglob("*"):
        os.utime(path, (old, old))
    files.sweep(queue)
    assert {key.split("/")[1] for key in store.keys("jobs")} == {waiting, arriving}


def test_a_store_that_is_away_is_waited_for(
    queue: JobQueue, files: JobFiles, tmp_path: Path
) -> None:
    job = queue.enqueue("fake", {})
    (tmp_path / "store").rename(tmp_path / "away")
    worker = fake_worker(queue, tmp_path / "one", files=files)
    running = threading.Thread(target=worker.run_one)
    running.start()
    until(lambda: queue.get(job.id).status is Status.RUNNING, "it is leased")
    time.sleep(0.3)
    assert queue.get(job.id).status is Status.RUNNING
    (tmp_path / "away").rename(tmp_path / "store")
    running.join()
    assert (queue.get(job.id).status, queue.get(job.id).attempts) == (Status.SUCCEEDED, 1)


def test_a_job_that_waits_for_the_store_can_be_cancelled(
    queue: JobQueue, files: JobFiles, tmp_path: Path
) -> None:
    job = queue.enqueue("fake", {})
    (tmp_path / "store").rename(tmp_path / "away")
    worker = fake_worker(queue, tmp_path / "one", files=files)
    running = threading.Thread(target=worker.run_one)
    running.start()
    until(lambda: queue.get(job.id).status is Status.RUNNING, "it is leased")
    queue.cancel(job.id)
    running.join()
    assert queue.get(job.id).status is Status.CANCELLED


def test_without_a_store_nothing_is_put_anywhere(
    queue: JobQueue, engine: Engine, tmp_path: Path
) -> None:
    none = JobFiles.of(Settings())
    clip = tmp_path / "in" / "scratch" / "clip"
    clip.parent.mkdir(parents=True)
    clip.touch()
    none.bring("1", tmp_path / "in", clip)
    assert clip.exists()
    none.sweep(queue)
    none.delete(["1"])

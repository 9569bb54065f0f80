"""Two classes of jobs: a short job does not wait behind a training."""

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from service.foundation.settings import Settings
from service.job_types.registry import JOB_CLASSES, job_types
from service.jobs.job import Job, Status
from service.jobs.job_type import Outcome, Step
from service.jobs.queue import JobQueue
from service.jobs.worker_pool import WorkerPool
from tests.e2e.deployment import until
from tests.service.jobs.fake_worker import FakeJob, fake_worker


def pool_of(queue: JobQueue, folders: Path) -> WorkerPool:
    types = {kind: FakeJob() for kind in ("distill", "calibrate")}
    return WorkerPool(
        [fake_worker(queue, folders, types, job_class=job_class) for job_class in JOB_CLASSES]
    )


def test_a_short_job_ends_while_a_long_one_runs_and_stopping_gives_the_long_one_back(
    queue: JobQueue, tmp_path: Path
) -> None:
    long = queue.enqueue("distill", {"steps": 1000, "seconds": 0.1})
    short = queue.enqueue("calibrate", {"steps": 1})
    pool = pool_of(queue, tmp_path / "jobs")
    thread = threading.Thread(target=pool.run)
    thread.start()
    try:
        until(lambda: queue.get(short.id).status is Status.SUCCEEDED, "the short job ends")
        until(lambda: queue.get(long.id).progress.step > 0, "the long job runs")
        assert queue.get(long.id).status is Status.RUNNING
    finally:
        pool.stop()
        thread.join(20)
    assert queue.get(long.id).status is Status.QUEUED


def test_every_type_of_job_has_one_job_class(queue: JobQueue, settings: Settings) -> None:
    engine = queue._engine
    kinds = [*job_types(settings, engine), "of a later version"]
    for kind in kinds:
        queue.enqueue(kind, {})
        leases = [queue.lease(job_class) for job_class in JOB_CLASSES]
        (lease,) = [lease for lease in leases if lease is not None]
        assert lease.job.type == kind
        assert (leases[0] is not None) == (kind in ("distill", "evaluate"))
        queue.succeed(lease, {})


def test_a_crew_ends_when_one_of_its_workers_fails(
    open_queue: Callable[..., JobQueue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = JobQueue.lease

    def fail_in_one(self: JobQueue, job_class: object = None, *_labels: object) -> object:
        if job_class is JOB_CLASSES[0]:
            raise OSError("the database is gone")
        return lease(self, JOB_CLASSES[1])

    monkeypatch.setattr(JobQueue, "lease", fail_in_one)
    with pytest.raises(OSError, match="gone"):
        pool_of(open_queue(), tmp_path / "jobs").run()


ENDS_ITS_JOB = """
import os, pathlib, sys, time
from service.storage.database import open_database
from service.jobs.job import LEASE_VARIABLE
from service.jobs.queue import JobQueue

database, job_id, mark = sys.argv[1:]
queue = JobQueue(open_database(database), lease_seconds=30, max_attempts=3)
queue.succeed(queue.lease_of(job_id, int(os.environ[LEASE_VARIABLE])), {"done": True})
time.sleep(0.5)
pathlib.Path(mark).touch()
"""


class EndsItself:
    """A job whose command ends it, and then goes on tidying up."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        arguments = (self._database_url, job.id, str(folder / "tidied"))
        return [Step("run", (sys.executable, "-c", ENDS_ITS_JOB, *arguments))]

    def complete(self, job: Job, folder: Path) -> Outcome:
        raise AssertionError("the job has ended")


def test_a_command_that_ended_its_own_job_may_tidy_up(
    queue: JobQueue, tmp_path: Path, database_url: str
) -> None:
    job = queue.enqueue("own", {})
    types = {"own": EndsItself(database_url)}
    assert fake_worker(queue, tmp_path, types).run_one()
    ended = queue.get(job.id)
    assert (ended.status, ended.result) == (Status.SUCCEEDED, {"done": True})
    assert (tmp_path / job.id / "tidied").exists()
    assert not (tmp_path / job.id / "scratch").exists()

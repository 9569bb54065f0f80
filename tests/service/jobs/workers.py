"""Workers of a service's own jobs that do not let a test wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.job_types.registry import JOB_CLASSES, job_types
from service.jobs.job import Job
from service.jobs.job_files import JobFiles
from service.jobs.job_type import JobType, Outcome, Step
from service.jobs.leases import LeaseObserver
from service.jobs.queue import JobClass, JobQueue, Lease
from service.jobs.worker import Worker
from service.jobs.worker_pool import WorkerPool
from service.storage.database import writing

Workers = Callable[[], AbstractContextManager[None]]
"""The fixture `workers`: what `gaitid worker` runs, until the block ends."""


def worker_of(
    settings: Settings,
    engine: Engine,
    *,
    queue: JobQueue | None = None,
    types: Mapping[str, JobType] | None = None,
    job_class: JobClass | None = None,
) -> Worker:
    queue = queue or JobQueue.of(engine, settings)
    return Worker(
        queue,
        types or job_types(settings, engine),
        folders=settings.jobs_dir,
        observer=LeaseObserver(queue.lease_seconds),
        grace_s=0.5,
        poll_s=0.05,
        job_class=job_class,
        files=JobFiles.of(settings),
    )


def leased(queue: JobQueue) -> Lease:
    """A lease on the oldest queued job, of which there must be one."""
    lease = queue.lease()
    assert lease is not None
    return lease


@contextmanager
def working(settings: Settings, engine: Engine) -> Iterator[None]:
    """The workers that `gaitid worker` has, until the block ends."""
    pool = WorkerPool([worker_of(settings, engine, job_class=one) for one in JOB_CLASSES])
    thread = threading.Thread(target=pool.run)
    thread.start()
    try:
        yield
    finally:
        pool.stop()
        thread.join()


class _Interrupted:
    """A type of job at whose end something else happens first."""

    def __init__(self, kind: JobType, meanwhile: Callable[[], object]) -> None:
        self._kind = kind
        self._meanwhile = meanwhile

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        return self._kind.steps(job, folder)

    def complete(self, job: Job, folder: Path) -> Outcome:
        outcome = self._kind.complete(job, folder)
        self._meanwhile()
        return outcome


def run_job(
    settings: Settings,
    engine: Engine,
    kind: str,
    request: dict[str, Any],
    meanwhile: Callable[[], object] = lambda: None,
) -> Job:
    """Run a job, with `meanwhile` before the transaction that ends it; returns how it ended."""
    queue = JobQueue.of(engine, settings)
    types = job_types(settings, engine)
    job = queue.enqueue(kind, request)
    interrupted = {kind: _Interrupted(types[kind], meanwhile)}
    assert worker_of(settings, engine, types=interrupted).run_one()
    return queue.get(job.id)


@contextmanager
def write_lock(engine: Engine) -> Iterator[None]:
    """Somebody who writes for long, such as an import."""
    with writing(engine).connect() as connection, connection.begin():
        held = engine.dialect.name == "sqlite"  # since the transaction began
        connection.exec_driver_sql("SELECT 1" if held else "LOCK TABLE job IN EXCLUSIVE MODE")
        yield

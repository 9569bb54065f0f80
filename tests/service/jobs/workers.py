"""A worker of a service's own jobs that does not let a test wait."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.job_types.types import job_types
from service.jobs.lane import Lane
from service.jobs.plan import JobType
from service.jobs.queue import JobQueue
from service.jobs.watch import Watch
from service.jobs.worker import Worker


def worker_of(
    settings: Settings,
    engine: Engine,
    *,
    queue: JobQueue | None = None,
    types: Mapping[str, JobType] | None = None,
    lane: Lane | None = None,
    watch: Watch | None = None,
) -> Worker:
    queue = queue or JobQueue.of(engine, settings)
    return Worker(
        queue,
        types or job_types(settings, engine),
        folders=settings.jobs_dir,
        watch=watch or Watch(queue.lease_seconds),
        grace_s=0.5,
        poll_s=0.05,
        lane=lane,
    )

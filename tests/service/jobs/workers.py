"""A worker of a service's own jobs that does not let a test wait."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.job_types.registry import job_types
from service.jobs.job_type import JobType
from service.jobs.leases import LeaseObserver
from service.jobs.queue import JobClass, JobQueue
from service.jobs.worker import Worker


def worker_of(
    settings: Settings,
    engine: Engine,
    *,
    queue: JobQueue | None = None,
    types: Mapping[str, JobType] | None = None,
    job_class: JobClass | None = None,
    observer: LeaseObserver | None = None,
) -> Worker:
    queue = queue or JobQueue.of(engine, settings)
    return Worker(
        queue,
        types or job_types(settings, engine),
        folders=settings.jobs_dir,
        observer=observer or LeaseObserver(queue.lease_seconds),
        grace_s=0.5,
        poll_s=0.05,
        job_class=job_class,
    )

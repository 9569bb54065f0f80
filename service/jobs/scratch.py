"""What jobs leave in their folders, and when it goes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path

from service.jobs.plan import remove_folder, scratch
from service.jobs.queue import JobQueue

_log = logging.getLogger(__name__)


def remove_leftovers(queue: JobQueue, folders: Path) -> None:
    """Remove the scratch of ended jobs, which a killed worker left behind.

    One that cannot be removed is logged, and keeps neither the others nor the caller's work.
    """
    present = list(_present(folders))  # before asking: a job that is new now is not ended
    unfinished = queue.unfinished()
    for folder in present:
        if folder.name not in unfinished:
            try:
                remove_folder(scratch(folder))
            except OSError as error:
                _log.error("job %s has ended, and its walks are left: %s", folder.name, error)


def remove_walks(folders: Path, job_ids: Collection[str]) -> None:
    """Remove copies of walks at once, under the feet of jobs that are being cancelled."""
    for job_id in job_ids:
        remove_folder(scratch(folders / job_id))


def remove_old(queue: JobQueue, folders: Path, before: datetime) -> int:
    """Remove the folders of jobs that ended before a moment and return how many there were."""
    present = list(_present(folders))  # the jobs there ever were are many more
    ended = queue.ended_before(before, [folder.name for folder in present])
    old = [folder for folder in present if folder.name in ended]
    for folder in old:
        remove_folder(folder)
    return len(old)


def _present(folders: Path) -> Iterator[Path]:
    return folders.iterdir() if folders.exists() else iter(())

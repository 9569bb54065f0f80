"""The folders of jobs: one each, with a part for scratch files that goes when the job has ended."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from service.jobs.queue import JobQueue

_log = logging.getLogger(__name__)

_TRIES = 10
_ARRIVED_S = 86_400.0


def scratch(folder: Path) -> Path:
    """The part of a job's folder that is removed when the job has ended."""
    return folder / "scratch"


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, that others may be removing or still writing to."""

    def ignore_missing(_function: object, _path: str, raised: tuple[Any, ...]) -> None:
        if not isinstance(raised[1], FileNotFoundError):
            raise raised[1]

    for _ in range(_TRIES):
        try:
            shutil.rmtree(folder, onerror=ignore_missing)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # else a file appeared meanwhile
                raise
        if not folder.exists():
            return
    raise OSError(errno.ENOTEMPTY, "files appear as fast as they are removed")


def remove_scratch_of_ended(queue: JobQueue, folders: Path) -> None:
    """Remove the scratch of ended jobs, which a killed worker left behind.

    So is a folder of no job, whose request was broken off a day ago or longer. A folder that cannot
    be removed is logged; the others are removed all the same.
    """
    present = list(_present(folders))  # before asking: a job that is new now is not ended
    unfinished = queue.unfinished()
    others = [folder for folder in present if folder.name not in unfinished]
    known = queue.known([folder.name for folder in others])
    for folder in others:
        if folder.name in known or _is_old(folder):
            try:
                remove_folder(scratch(folder) if folder.name in known else folder)
            except OSError as error:
                _log.error("job %s has ended, and its walks are left: %s", folder.name, error)


def remove_scratch(folders: Path, job_ids: Collection[str]) -> None:
    """Remove copies of walks at once, also while the jobs that use them are being cancelled."""
    for job_id in job_ids:
        remove_folder(scratch(folders / job_id))


def remove_old_folders(queue: JobQueue, folders: Path, before: datetime) -> int:
    """Remove the folders of jobs that ended before a moment; returns how many there were."""
    present = list(_present(folders))  # the jobs there ever were are many more
    ended = queue.ended_before(before, [folder.name for folder in present])
    old = [folder for folder in present if folder.name in ended]
    for folder in old:
        remove_folder(folder)
    return len(old)


def _is_old(folder: Path) -> bool:
    """Whether its request has ended: a clip arrives before its job is queued."""
    try:
        return time.time() - folder.stat().st_mtime > _ARRIVED_S
    except FileNotFoundError:
        return False


def _present(folders: Path) -> Iterator[Path]:
    return folders.iterdir() if folders.exists() else iter(())

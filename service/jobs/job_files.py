"""What another host needs to go on with a job: parts of the job's folder, in the store.

    jobs/ID/LEASE/PATH      a file or folder of the job's folder, as the holder of a lease put it

The number of the lease is in the name, so that a worker that was presumed dead overwrites nothing
of its successor's; of each part the newest lease's counts. Parts are put when they are whole: what
a request brought (lease 0), the output of a step, a step's state each time it is replaced. All of
it is deleted when the job has ended. They hold walks, so they are sealed with the deployment's key
if there is one. Without a store none of this happens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Self

from service.foundation.errors import Unavailable
from service.foundation.settings import Settings
from service.jobs.queue import JobQueue, Lease
from service.jobs.scratch import remove_folder, scratch
from service.storage.database import now
from service.storage.encryption import read_keys
from service.storage.file_store import FileStore, open_store

_IN_STORE = "jobs"
_WORKED_ON = "attempt"
_ARRIVED = timedelta(days=1)  # by when a job is queued whose clip is in the store
_LOOK_S = 1.0
_log = logging.getLogger(__name__)

GoOn = Callable[[], None]
"""Called between pieces of a file; raises what ends the work."""


class JobFiles:
    """Parts of jobs' folders in the store. Methods may raise `StoreUnavailable`, `StoreDamaged`."""

    def __init__(self, store: FileStore | None) -> None:
        self._store = store

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The deployment's; raises `KeyTrouble` if its keys cannot be read any more."""
        return cls(open_store(settings, read_keys(settings)))

    def bring(self, job_id: str, folder: Path, part: Path) -> None:
        """Put what a request brought, before its job is queued, and remove the host's own copy."""
        if self._store is not None:
            self._store.put(_key(job_id, 0, folder, part), part)
            remove_folder(folder)

    def keep(self, lease: Lease, folder: Path, part: Path, go_on: GoOn) -> None:
        """Put a part of a job's folder; raises what `go_on` raises."""
        if self._store is not None:
            self._store.put(_key(lease.job.id, lease.number, folder, part), part, go_on)

    def fetch(self, lease: Lease, folder: Path, go_on: GoOn) -> None:
        """Make a job's folder as its last worker left it; raises what `go_on` raises.

        What this host has of an attempt that was followed by one elsewhere is removed before.
        """
        if self._store is None:
            return
        prefix = f"{_IN_STORE}/{lease.job.id}"
        newest: dict[str, int] = {}
        for key in self._store.keys(prefix):
            number, _, part = key.removeprefix(f"{prefix}/").partition("/")
            if number.isascii() and number.isdigit() and part:
                newest[part] = max(newest.get(part, 0), int(number))
        here = folder / _WORKED_ON
        last_here = int(here.read_text()) if here.exists() else 0
        if max(newest.values(), default=0) > last_here:
            remove_folder(scratch(folder))
        scratch(folder).mkdir(exist_ok=True)
        for part, from_lease in newest.items():
            to = folder / part
            if from_lease > last_here or not to.exists():
                self._store.fetch(f"{prefix}/{from_lease}/{part}", to, go_on)
        new = here.with_name(f"{_WORKED_ON}-{lease.number}")
        new.write_text(str(lease.number))
        new.replace(here)

    @contextmanager
    def saving(self, lease: Lease, folder: Path, state: Path | None) -> Iterator[None]:
        """Put a step's state whenever it was replaced, until the block ends, and then once more."""
        if self._store is None or state is None:
            yield
            return
        ended = threading.Event()
        saver = threading.Thread(
            target=self._save, args=(lease, folder, state, ended), name="saving state"
        )
        saver.start()
        try:
            yield
        finally:
            ended.set()
            saver.join()

    def delete(self, job_ids: Collection[str]) -> None:
        """Delete all that the store has of jobs."""
        if self._store is not None:
            for job_id in job_ids:
                self._store.delete(f"{_IN_STORE}/{job_id}")

    def sweep(self, queue: JobQueue) -> None:
        """Delete what is left of ended jobs, and what was brought for jobs that never were."""
        if self._store is None:
            return
        present = set(self._store.beginnings(_IN_STORE))
        others = sorted(present - queue.unfinished())  # asked after looking
        known = queue.known(others)
        recent = set(self._store.beginnings(_IN_STORE, since=now() - _ARRIVED))
        self.delete([job_id for job_id in others if job_id in known or job_id not in recent])

    def _save(self, lease: Lease, folder: Path, state: Path, ended: threading.Event) -> None:
        saved = _version(state)  # of an attempt before, or fetched
        last = False
        while not last:
            last = ended.wait(_LOOK_S)
            found = _version(state)
            if found in (None, saved):
                continue
            try:
                self.keep(lease, folder, state, lambda: None)
            except (OSError, Unavailable):  # the next look tries again
                _log.exception("job %s: its state is not in the store", lease.job.id)
            else:
                saved = found


def _key(job_id: str, number: int, folder: Path, part: Path) -> str:
    inside = part.absolute().relative_to(folder.absolute())
    return f"{_IN_STORE}/{job_id}/{number}/{inside.as_posix()}"


def _version(path: Path) -> tuple[int, int] | None:
    """What differs when a file was replaced."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns

"""The lock on a job's folder, in which one attempt at a time has processes.

The kernel releases it with the last process that holds it: a watchdog or a command (see
`service.jobs.kill_with_parent`). An attempt that finds it held belongs to a worker that took the
job over from one that was silent, perhaps only paused. It writes the number of its lease to a file;
the watchdog of an earlier lease reads that and ends its command, which a paused worker cannot do.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"
_LATER_LEASE = "lease"


def later_lease_file(folder: Path) -> Path:
    """The file with the number of the lease that waits for the lock."""
    return folder / _LATER_LEASE


def write_later_lease(folder: Path, number: int) -> None:
    """Make attempts of earlier leases end."""
    new = later_lease_file(folder).with_name(f"{_LATER_LEASE}-{number}")
    new.write_text(str(number))
    new.replace(later_lease_file(folder))


@contextmanager
def try_lock(folder: Path) -> Iterator[int | None]:
    """The file descriptor of the lock, for child processes to inherit; None if others hold it."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            later_lease_file(folder).unlink(missing_ok=True)  # no earlier attempt is left
            yield lock
    finally:
        os.close(lock)

"""The lock on a job's folder, in which one attempt at a time has processes.

The kernel gives it up with the last process that holds it: a guard or a command (see
`service.jobs.guard`). An attempt that finds it held belongs to a worker that took the job over from
one that was silent, perhaps only paused. It announces the number of its lease in a file; the guard
of an earlier lease reads that and ends its command, which a paused worker cannot do.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"
_ANNOUNCED = "lease"


def announced(folder: Path) -> Path:
    """The file with the number of the lease that waits for the lock."""
    return folder / _ANNOUNCED


def announce(folder: Path, number: int) -> None:
    """Have earlier attempts end."""
    new = announced(folder).with_name(f"{_ANNOUNCED}-{number}")
    new.write_text(str(number))
    new.replace(announced(folder))


@contextmanager
def try_lock(folder: Path) -> Iterator[int | None]:
    """The file descriptor of the lock, to be inherited by what is started; None if it is held."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            announced(folder).unlink(missing_ok=True)  # nobody earlier is left
            yield lock
    finally:
        os.close(lock)

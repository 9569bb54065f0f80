"""Disk space reserved so that erasures still work on a full disk.

An erasure writes before it frees space: overwritten pages pass through the write-ahead log. So a
file in the data folder reserves some, which is released when an erasure finds the disk full, and
taken again afterwards.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from service.foundation.errors import StorageFull
from service.storage.failures import storage_trouble

_log = logging.getLogger(__name__)
Result = TypeVar("Result")
_PIECE = 64 * 1024


class Reserve:
    """A file of `size` bytes at `path`; any number of processes may share it."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size

    def fill(self) -> None:
        """Reserve the space, or most of what is left; a log line says if that is less.

        If another process removes the file at this moment, there is no reserve until the next time.
        """
        if not self._size:
            return
        try:
            with self._path.open("ab") as file:
                held = _extend(file.fileno(), self._size)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            _log.warning("there is no space to reserve for erasures: %s", error.strerror)
        else:
            if held < self._size:
                _log.warning("only %d bytes are reserved for erasures", held)

    def spend(self, erase: Callable[[], Result]) -> Result:
        """Erase something; if the disk is full, once more with the reserve's space."""
        try:
            return erase()
        except (OSError, SQLAlchemyError) as error:
            if not isinstance(storage_trouble(error), StorageFull) or not self._release():
                raise
        try:
            return erase()
        finally:
            self.fill()

    def _release(self) -> bool:
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        _log.warning("the disk is full: an erasure uses the space reserved for it")
        return True


def _extend(file: int, size: int) -> int:
    """Give a file `size` bytes of the disk, or most of what is left; returns how many it has.

    After an erasure that had to grow a file little is left, and the next one needs it.
    """
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        held, disk = os.fstat(file).st_size, os.fstatvfs(file)
        left = disk.f_bavail * disk.f_frsize * 15 // 16 // _PIECE * _PIECE  # others write, too
        if error.errno != errno.ENOSPC or not held + left:
            raise
        os.posix_fallocate(file, 0, min(size, held + left))
    return os.fstat(file).st_size

"""Space that is kept so that a full disk can still be erased from.

An erasure writes before it frees: overwritten pages pass through the write-ahead log. So a file of
the data folder holds some space, which is given free when an erasure finds none, and taken again
afterwards.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from service.database import storage_trouble
from service.errors import StorageFull

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Reserve:
    """A file of `size` bytes at `path`; any number of processes may share it."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size

    def fill(self) -> None:
        """Take the space, if it is not taken and there is any; a log line says when there is not.

        A file that another process removes at this moment only means that there is no reserve until
        the next time.
        """
        if not self._size:
            return
        try:
            with self._path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, self._size)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            _log.warning("there is no space to reserve for erasures: %s", error.strerror)

    def spend(self, erase: Callable[[], Result]) -> Result:
        """Erase something, with the reserve's space where there is no other left."""
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

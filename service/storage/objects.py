"""Named objects outside of the data folder, which several hosts reach: the seam of file stores.

Two implementations: `FolderObjects`, a folder that all hosts mount, and `service.storage.s3`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from models.files.disk import sync
from service.foundation.errors import Unavailable
from service.storage.database import new_id

PIECE = 1 << 20  # bytes that are read at once
_ARRIVING = ".arriving"
_TRIES = 10


class StoreUnavailable(Unavailable):
    """The store cannot be reached, or refuses us; the log says why."""

    slug = "store-unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The store of this deployment's files cannot be reached or used. Try again in a "
            "moment; the service's log says why.",
            retry_after=10.0,
        )


class NotStored(Exception):
    """The store has nothing of that name."""


class AlreadyStored(Exception):
    """The store has something of that name."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a store, and when it was written."""

    key: str
    written: datetime


class Objects(Protocol):
    """Objects by key. A key is names with `/` between; an object appears whole or not at all.

    Every method may raise `StoreUnavailable`, after it has tried again for a while.
    """

    def write(self, key: str, content: Iterable[bytes]) -> None:
        """Write an object, or write it anew; memory holds a few pieces of it."""

    def write_new(self, key: str, content: bytes) -> None:
        """Write a small object that is not there; raises `AlreadyStored`."""

    def read(self, key: str) -> Iterator[bytes]:
        """The pieces of an object; raises `NotStored`."""

    def list(self, prefix: str) -> Iterator[Listed]:
        """The objects whose keys begin with `prefix` and a `/`, in no order."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are missing are none to delete."""


class FolderObjects:
    """Objects as files in a folder, as the hosts of a deployment mount it."""

    def __init__(self, root: Path) -> None:
        """Keep objects in `root`, which must exist: it may be a mount that is missing."""
        self._root = root

    def write(self, key: str, content: Iterable[bytes]) -> None:
        """Write beside, then rename."""
        draft = self._draft(content)
        try:
            self._place(draft, key, replace=True)
        finally:
            draft.unlink(missing_ok=True)

    def write_new(self, key: str, content: bytes) -> None:
        """Write beside, then link, which fails where something is."""
        draft = self._draft([content])
        try:
            self._place(draft, key, replace=False)
        except FileExistsError as error:
            raise AlreadyStored(key) from error
        finally:
            draft.unlink(missing_ok=True)

    def read(self, key: str) -> Iterator[bytes]:
        """The file's pieces."""
        self._require()
        try:
            with (self._root / key).open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotStored(key) from error

    def list(self, prefix: str) -> Iterator[Listed]:
        """The files below a folder, as far as they stay while it is read."""
        self._require()
        for folder, _, names in os.walk(self._root / prefix):
            for name in names:
                path = Path(folder, name)
                try:
                    written = path.stat().st_mtime
                except FileNotFoundError:
                    continue
                key = path.relative_to(self._root).as_posix()
                if not key.startswith(f"{_ARRIVING}/"):
                    yield Listed(key, datetime.fromtimestamp(written, UTC))

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the files, and the folders that they leave empty."""
        self._require()
        for key in keys:
            path = self._root / key
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root or not _remove_empty(folder):
                    break

    def _draft(self, content: Iterable[bytes]) -> Path:
        self._require()
        arriving = self._root / _ARRIVING
        arriving.mkdir(mode=0o700, exist_ok=True)
        draft = arriving / new_id()
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as to:
                for piece in content:
                    to.write(piece)
                to.flush()
                os.fsync(to.fileno())
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return draft

    def _place(self, draft: Path, key: str, *, replace: bool) -> None:
        target = self._root / key
        for left in reversed(range(_TRIES)):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                if replace:
                    draft.replace(target)
                else:
                    os.link(draft, target)
            except FileNotFoundError:  # whoever deletes has removed the empty folder meanwhile
                if not left:
                    raise
            else:
                sync(target.parent)
                return

    def _require(self) -> None:
        if not self._root.is_dir():
            raise StoreUnavailable


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:  # it has other files, or is gone
        return False
    return True

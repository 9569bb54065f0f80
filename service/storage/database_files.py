"""Notice when a SQLite database's files are removed or replaced under a running process.

SQLite goes on writing into a file that was removed, and opens a new, empty one in its place. What
is acknowledged then is lost with the process, and two connections see two databases. So each
connection remembers the files it was opened on and compares them before it is used and after every
commit; a commit that may be lost is an error.

While any connection is open, SQLite itself neither removes nor replaces one of these files.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakSet

from sqlalchemy.exc import SQLAlchemyError

_log = logging.getLogger(__name__)

_LOG_MAGIC: Final = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")  # by its byte order
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_TEXT: Final = "Could not decode to UTF-8"  # Python's own error, which has no code

Inode = tuple[int, int] | None
"""Device and number of a file; None if there is no file."""


class DatabaseGone(SQLAlchemyError):
    """A file of the database is not the one that was opened; `committed`: found after a commit."""

    def __init__(self, text: str, *, committed: bool = False) -> None:
        super().__init__(text)
        self.committed = committed


class DatabaseDamaged(SQLAlchemyError):
    """The database was found to be damaged, so nothing more is written to it."""


class FileIds(NamedTuple):
    """The files that exist: the database's own, its write-ahead log, the log's shared index."""

    main: Inode
    log: Inode
    shared: Inode


class DatabaseFiles:
    """The files of the database that one engine opened first.

    If only the log or its index is removed, a connection that still has the log moves what it holds
    into the database file. No new files are opened: other processes may still write into the
    removed ones. So the database is out of reach until this process is started again.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()
        real = self._path.resolve()  # where SQLite puts what belongs to a file behind a link
        self._log = real.with_name(f"{real.name}-wal")
        self._shared = real.with_name(f"{real.name}-shm")
        self._main: Inode = None
        self._removed = False
        self._damaged = False

    def opened(self, connection: WatchedConnection) -> None:
        """Watch a new connection, which has read something by now."""
        connection.files, connection.opened_on = self, self._found()
        if self._main is None:
            self._main = connection.opened_on.main
        with _watching:
            _open.add(connection)

    def check_before_opening(self) -> None:
        """Raise `DatabaseGone` if a new connection would see other files than the open ones."""
        found = self._found()
        with _watching:
            others = [one.opened_on for one in _open if one.files._path == self._path]
        if (
            self._removed
            or self._main not in (None, found.main)
            or any(other != found for other in others)
        ):
            raise self._gone()

    def require_same(self, connection: WatchedConnection) -> None:
        """Raise `DatabaseGone` unless a connection was opened on the files that exist now."""
        if self._removed or not self._is_as_opened(connection, self._found()):
            raise self._gone()

    def check_idle(self, connection: WatchedConnection) -> None:
        """As `require_same` for an idle connection; first saves what its removed log holds."""
        if self._removed:
            raise self._gone()
        found = self._found()
        if self._is_as_opened(connection, found):
            return
        if found.main == self._main:
            self._removed = True
            self._save(connection, found)
        raise self._gone()

    def check_after_commit(self, connection: WatchedConnection) -> None:
        """Raise `DatabaseGone` if what was just committed may be lost when the process ends."""
        found = self._found()
        if not self._is_as_opened(connection, found) and not self._save(connection, found):
            raise self._gone(committed=True)

    def require_sound(self) -> None:
        """Raise `DatabaseDamaged` once damage was found."""
        if self._damaged:
            raise DatabaseDamaged(f"{self._path.name} is damaged")

    def note(self, error: BaseException | None) -> None:
        """Remember an error of SQLite's that means damage."""
        if not self._damaged and is_damage(error):
            self._damaged = True
            _log.error(
                "%s is damaged (%s): nothing more is written to it; stop the service and restore a "
                "backup, see docs/operations.md",
                self._path.name,
                error,
            )

    def _found(self) -> FileIds:
        return FileIds(_inode(self._path), _inode(self._log), _inode(self._shared))

    def _is_as_opened(self, connection: WatchedConnection, found: FileIds) -> bool:
        return found == connection.opened_on and found.main == self._main and self._log_begins()

    def _log_begins(self) -> bool:
        """Whether the log is missing, empty, or begins as one does; not once it was cut off.

        SQLite locks no part of the log, so it may be opened here and closed again.
        """
        try:
            with self._log.open("rb", buffering=0) as log:
                return log.read(4) in (b"", *_LOG_MAGIC)
        except OSError:
            return True  # a missing log is noticed by its id

    def _save(self, connection: WatchedConnection, found: FileIds) -> bool:
        """Move what a removed log holds into the database file; returns whether all of it is there.

        Only if nobody can have written anything else since: a log in its place is empty, and the
        index, by which processes exclude each other, was not replaced.
        """
        opened = connection.opened_on
        cut_off = found.log == opened.log and not self._log_begins()
        replaced = found.log not in (None, opened.log) and _size(self._log) > 0
        other_index = found.shared not in (None, opened.shared)
        if found.main != opened.main or cut_off or replaced or other_index:
            return False
        try:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.DatabaseError as error:
            _log.error("what a write-ahead log held that was removed is not saved: %s", error)
            return False
        if busy:
            _log.error("what a write-ahead log held that was removed is in use, and not saved")
            return False
        _log.error("a write-ahead log was removed; what it held is saved in %s", self._path.name)
        return True

    def _gone(self, *, committed: bool = False) -> DatabaseGone:
        return DatabaseGone(
            f"{self._path.name}, or its -wal or -shm, was removed, replaced or cut off while in "
            "use: restart every process of the deployment; put the file back first, if that is "
            f"{self._path.name} itself",
            committed=committed,
        )


class WatchedConnection(sqlite3.Connection):
    """A connection that knows the files it was opened on."""

    files: DatabaseFiles
    opened_on: FileIds

    def commit(self) -> None:
        """Commit; raises `DatabaseGone` if the commit may be lost."""
        writes = self.in_transaction
        super().commit()
        if writes:
            self.files.check_after_commit(self)

    def close(self) -> None:
        """Close it; other connections need not match its files any more."""
        with _watching:
            _open.discard(self)
        super().close()


_watching = threading.Lock()
_open: WeakSet[WatchedConnection] = WeakSet()
"""Every open connection of this process: SQLite shares its state of a file among them."""


def is_damage(error: BaseException | None) -> bool:
    """Whether an error of SQLite's says that what is stored is not what was written."""
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    code = getattr(error, "sqlite_errorcode", 0)  # the low byte is the kind, the rest refines it
    return (
        code & 0xFF in _DAMAGE
        or code == sqlite3.SQLITE_IOERR_SHORT_READ
        or str(error).startswith(_NO_TEXT)
    )


def _inode(path: Path) -> Inode:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

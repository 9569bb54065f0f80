"""What to tell a client when the database, the disk or the data folder fails."""

from __future__ import annotations

import errno
import sqlite3
import tempfile

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.foundation.errors import ServiceError, StorageFull, Unavailable
from service.storage.database_files import DatabaseDamaged, DatabaseGone, is_damage
from service.storage.postgresql import CommitUnknown, state_of

_SQLITE_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SQLITE_OUT_OF_REACH = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
)
_FILES_OUT_OF_REACH = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
)
_POSTGRESQL_DISK_FULL = "53100"
_POSTGRESQL_ROLLED_BACK = frozenset({"40001", "40P01"})  # others were changing the same; a deadlock
_POSTGRESQL_BUSY = _POSTGRESQL_ROLLED_BACK | {
    "53200",  # out of memory
    "53300",  # too many connections
    "55P03",  # waited too long for a lock
    "57014",  # a statement took too long
}
_POSTGRESQL_READ_ONLY = "25006"  # a former primary
_OUT_OF_REACH = "database-unavailable"


def storage_trouble(error: Exception) -> ServiceError | None:
    """What to tell a client when storage is at fault; None when the request is, or the program.

    Whatever was being written was rolled back.
    """
    match error:
        case OSError(errno=errno.ENOSPC | errno.EDQUOT) if _in_temporary_folder(error):
            return StorageFull(
                "There is no space left in the service's temporary folder, where uploads are kept "
                "while they are read, and nothing was changed. Free space there, or send less at a "
                "time."
            )
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _full()
        case OSError() if _in_temporary_folder(error):
            return _out_of_reach("temporary folder")
        case OSError(errno=code) if code in _FILES_OUT_OF_REACH:
            return _out_of_reach("data folder")
        case PoolTimeoutError():
            return _busy()
        case DatabaseGone(committed=True):
            return _unknown("database's files were removed or replaced")
        case CommitUnknown():
            return _unknown("connection to the database was lost")
        case DatabaseGone():
            return _out_of_reach()
        case DatabaseDamaged():
            return _damaged()
        case DBAPIError(orig=sqlite3.DatabaseError() as cause) if is_damage(cause):
            return _damaged()
        case DBAPIError(orig=sqlite3.OperationalError() as cause):
            return _sqlite_trouble(cause)
        case DBAPIError(orig=cause) if (state := state_of(cause)) is not None:
            return _postgresql_trouble(state, operational=isinstance(error, OperationalError))
        case OperationalError():  # there is no connection
            return _out_of_reach()
        case DBAPIError(connection_invalidated=True):
            return _out_of_reach()
        case _:
            return None


def was_rolled_back(error: Exception) -> bool:
    """Whether PostgreSQL ended a transaction because of others, so that it may be run again."""
    return isinstance(error, DBAPIError) and state_of(error.orig) in _POSTGRESQL_ROLLED_BACK


def is_away(error: BaseException | None) -> bool:
    """Whether PostgreSQL cannot be reached or written: its engine logs that, once for all."""
    if isinstance(error, CommitUnknown):
        return True
    if not isinstance(error, DBAPIError) or isinstance(error.orig, sqlite3.Error):
        return False
    trouble = storage_trouble(error)
    return trouble is not None and trouble.problem_slug == _OUT_OF_REACH


def _in_temporary_folder(error: BaseException) -> bool:
    """Whether the error comes from a temporary file of Python's: an upload that is being read.

    Such a file may have no name, so the error has none, either.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename == tempfile.__file__


def _sqlite_trouble(cause: sqlite3.OperationalError) -> ServiceError | None:
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the rest refines it
    if code in _SQLITE_BUSY:
        return _busy()
    if code == sqlite3.SQLITE_FULL:
        return _full()
    return _out_of_reach() if code in _SQLITE_OUT_OF_REACH else None  # else our own mistake


def _postgresql_trouble(state: str, *, operational: bool) -> ServiceError | None:
    if state == _POSTGRESQL_DISK_FULL:
        return _full()
    if state in _POSTGRESQL_BUSY:
        return _busy()
    # Else a statement is wrong, or what it was given: our own mistake.
    return _out_of_reach() if operational or state == _POSTGRESQL_READ_ONLY else None


def _unknown(what: str) -> ServiceError:
    return Unavailable(
        f"The {what} while this was written, and it is not known whether it was kept. The "
        "service's log says what to do; ask then for what you sent.",
        slug=_OUT_OF_REACH,
        retry_after=10.0,
    )


def _busy() -> ServiceError:
    return Unavailable(
        "The database is busy with other work. Try again in a moment.",
        slug="database-busy",
        retry_after=2.0,
    )


def _full() -> ServiceError:
    return StorageFull(
        "The service has no space left to write to, and changed nothing. Free space where it "
        "keeps its data, then try again."
    )


def _out_of_reach(what: str = "database") -> ServiceError:
    return Unavailable(
        f"The {what} cannot be written or reached, and nothing was changed. The service's log "
        "says why.",
        slug=_OUT_OF_REACH,
        retry_after=10.0,
    )


def _damaged() -> ServiceError:
    return Unavailable(
        "The database is damaged, and nothing was changed. Its operator must stop the service and "
        "restore a backup; the service's log says more.",
        slug="database-damaged",
        retry_after=60.0,
    )

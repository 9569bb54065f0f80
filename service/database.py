"""One database: engine, declarative base and migrations. SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

import errno
import logging
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import uuid_utils
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, DateTime, Dialect, Engine, TypeDecorator, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase

from service.errors import ServiceError, StorageFull, Unavailable

_log = logging.getLogger(__name__)

_LARGEST_REWRITE = 250_000_000
_LOCK_WAIT_MS = 10_000  # for another process that writes; a request then says 503
_SQLITE_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SQLITE_OUT_OF_REACH = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
)
_FILES_OUT_OF_REACH = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
)
_POSTGRESQL_DISK_FULL = "53100"


class NewerSchema(Exception):
    """A newer version of the program has written here; the text says what to do."""


class DatabaseGone(SQLAlchemyError):
    """The database's file is not where it was opened, or another one is in its place."""


class _OneFile:
    """The file that an engine opened first; every connection of it must be one to that file.

    SQLite writes on into a file that was removed, and opens a new and empty one in its place: what
    is acknowledged then is lost, and two connections of one process see two databases.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._first: tuple[int, int] | None = None

    def remember(self) -> None:
        """Know it by where it is now, if it is not known yet."""
        self._first = self._first or self._found()

    def check(self) -> None:
        """Raise `DatabaseGone` unless it is still there, or was never opened."""
        if self._first is not None and self._found() != self._first:
            raise DatabaseGone(f"{self._path} was removed, moved or replaced while in use")

    def _found(self) -> tuple[int, int] | None:
        try:
            status = Path(self._path).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC timestamp; SQLite forgets the zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> datetime | None:
        """Refuse naive timestamps; store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("timestamps must carry a time zone")
        return value.astimezone(UTC)

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> datetime | None:
        """Return an aware UTC timestamp."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """Base of every mapped table."""

    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012 - SQLAlchemy reads it by name


def now() -> datetime:
    """The current time, UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """An opaque id that sorts by creation time (UUIDv7)."""
    return str(uuid_utils.uuid7())


def open_database(url: str, *, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> Engine:
    """Connect and set what every connection needs.

    SQLite runs in WAL mode (readers never wait for the writer), with `synchronous=FULL` so that a
    commit that was acknowledged survives a power cut, foreign keys on, and `secure_delete` so that
    erased biometric data is overwritten in the file. A transaction takes the write lock when it
    begins with `BEGIN IMMEDIATE` (see `writing`), never half-way. With `synchronous="NORMAL"` a
    commit survives the end of the process but not a power cut.

    A database whose file is removed or replaced meanwhile raises `DatabaseGone` from then on.

    Errors carry no parameters: they would bring subject ids into logs.
    """
    engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        path = engine.url.database
        file = None if path in (None, "", ":memory:") else _OneFile(path)

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: object) -> None:
            connection.isolation_level = None  # SQLAlchemy's "begin" event emits BEGIN, below
            for pragma in (
                "journal_mode=WAL",
                f"synchronous={synchronous}",
                "foreign_keys=ON",
                "secure_delete=ON",
                f"busy_timeout={_LOCK_WAIT_MS}",
            ):
                connection.execute(f"PRAGMA {pragma}")
            if file is not None:
                file.remember()

        if file is not None:
            event.listen(engine, "do_connect", lambda *_: file.check())
            event.listen(engine, "checkout", lambda *_: file.check())

        @event.listens_for(engine, "begin")
        def begin(connection: object) -> None:
            # A deferred transaction that reads and then writes can fail with SQLITE_BUSY without
            # waiting; taking the write lock up front makes writers queue instead.
            options = connection.get_execution_options()  # type: ignore[attr-defined]
            mode = "IMMEDIATE" if options.get("write") else "DEFERRED"
            connection.exec_driver_sql(f"BEGIN {mode}")  # type: ignore[attr-defined]

    return engine


def writing(engine: Engine) -> Engine:
    """The same engine, whose transactions take the write lock when they begin."""
    return engine.execution_options(write=True)


def migrate(engine: Engine, what: Literal["galleries", "audit"] = "galleries") -> None:
    """Bring the schema to the newest version; safe when several processes start at once.

    `what` says which of a deployment's two histories; both may be those of one database. Raises
    `NewerSchema`, and what the database refuses.
    """
    folder = Path(__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder))
    if what == "audit":
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", str(folder / "audit_versions"))
        config.attributes["version_table"] = "audit_version"
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:  # it knows no such revision
            raise NewerSchema(
                "the database was written by a newer version of GaitID, which this one cannot "
                "read: start that version, or one that came after it"
            ) from error


def empty_log(engine: Engine) -> None:
    """Move SQLite's log of newer pages into its file, so that no older page is left beside it.

    To be called after what was deleted or replaced was committed; logs what keeps it from doing so.
    """
    if engine.dialect.name == "sqlite":
        connection = engine.raw_connection()  # a checkpoint cannot run inside a transaction
        try:
            busy, _, _ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:  # no space left, say: the erasure is committed
            _log.error("the write-ahead log keeps what was erased: %s", error)
        else:
            if busy:
                _log.warning("the write-ahead log keeps what was erased until the next sweep")
        finally:
            connection.close()


def note_erasure(connection: Connection) -> None:
    """Count a transaction that erases, so that `rewrite` finds something to do; one that writes."""
    if connection.dialect.name == "sqlite":
        count = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version={count + 1}")


def rewrite(engine: Engine, largest: int = _LARGEST_REWRITE) -> None:
    """Write SQLite's file anew, if something was erased since that was done.

    `secure_delete` overwrites what is deleted. Where a row had moved from one page to another
    before, a copy of it may be left in the unused part of the old one.

    Writers wait meanwhile, some seconds for 250 MB, so a file of more than `largest`
    bytes is left as it is; a log line says so, or what else keeps it from being written.
    """
    if engine.dialect.name != "sqlite":
        return
    connection = engine.raw_connection()  # inside a transaction there is no VACUUM
    try:
        cursor = connection.cursor()
        pragma = {
            name: cursor.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("user_version", "page_count", "page_size")
        }
        if not pragma["user_version"]:
            return
        if pragma["page_count"] * pragma["page_size"] > largest:
            _log.warning("a database with traces of what was erased is too large to be rewritten")
            return
        cursor.execute("VACUUM")
        cursor.execute("BEGIN IMMEDIATE")
        if cursor.execute("PRAGMA user_version").fetchone()[0] == pragma["user_version"]:
            cursor.execute("PRAGMA user_version=0")  # nothing was erased meanwhile
        cursor.execute("COMMIT")
    except sqlite3.OperationalError as error:  # busy, or no space left: the next time, then
        _log.warning("traces of what was erased are left in a database: %s", error)
    finally:
        connection.close()


def storage_trouble(error: Exception) -> ServiceError | None:
    """What to tell a client when storage is at fault, not the request; None when it is not.

    Whatever was being written was rolled back.
    """
    match error:
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _full()
        case OSError(errno=code) if code in _FILES_OUT_OF_REACH:
            return _out_of_reach("data folder")
        case PoolTimeoutError():
            return _busy()
        case DatabaseGone():
            return _out_of_reach()
        case DBAPIError(orig=sqlite3.OperationalError() as cause):
            return _sqlite_trouble(cause)
        case OperationalError(orig=cause):
            full = getattr(cause, "sqlstate", None) == _POSTGRESQL_DISK_FULL
            return _full() if full else _out_of_reach()
        case _:
            return None


def _sqlite_trouble(cause: sqlite3.OperationalError) -> ServiceError | None:
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the rest refines it
    if code in _SQLITE_BUSY:
        return _busy()
    if code == sqlite3.SQLITE_FULL:
        return _full()
    return _out_of_reach() if code in _SQLITE_OUT_OF_REACH else None  # else our own mistake


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
        slug="database-unavailable",
        retry_after=10.0,
    )

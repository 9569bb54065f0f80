"""One database: engine, declarative base and migrations. SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

import errno
import logging
import sqlite3
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, Literal, TypeVar, cast

import uuid_utils
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import (
    Connection,
    DateTime,
    Dialect,
    Engine,
    ExceptionContext,
    PoolProxiedConnection,
    TypeDecorator,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase

from service.foundation.errors import ServiceError, StorageFull, Unavailable
from service.storage.database_files import (
    DatabaseDamaged,
    DatabaseFiles,
    DatabaseGone,
    WatchedConnection,
    is_damage,
)

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


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some items, and the key after which the next page starts (None: this was the last)."""

    items: tuple[Item, ...]
    next_key: str | None


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

    A database of which a file is removed or replaced meanwhile raises `DatabaseGone` from then on,
    and one that was found to be damaged `DatabaseDamaged` whenever it is to be written to.

    Errors carry no parameters: they would bring subject ids into logs.
    """
    engine = create_engine(
        url,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"factory": WatchedConnection} if _is_a_file(url) else {},
    )
    if engine.dialect.name == "sqlite":
        _set_up_sqlite(engine, synchronous)
    if _is_a_file(url):
        _watch(engine, DatabaseFiles(engine.url.database or ""))
    return engine


def _is_a_file(url: str) -> bool:
    parsed = make_url(url)
    return parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")


def _set_up_sqlite(engine: Engine, synchronous: str) -> None:
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

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes can fail with SQLITE_BUSY without
        # waiting; taking the write lock up front makes writers queue instead.
        mode = "IMMEDIATE" if connection.get_execution_options().get("write") else "DEFERRED"
        connection.exec_driver_sql(f"BEGIN {mode}")


def _watch(engine: Engine, files: DatabaseFiles) -> None:
    @event.listens_for(engine, "connect")
    def opened(connection: WatchedConnection, _record: object) -> None:
        connection.execute("PRAGMA schema_version").fetchone()  # opens the log
        files.opened(connection)

    @event.listens_for(engine, "do_connect")
    def connecting(*_: object) -> None:
        files.check_before_opening()

    @event.listens_for(engine, "checkout")
    def checkout(connection: WatchedConnection, *_: object) -> None:
        files.check(connection)

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # Whoever had to wait for the write lock waited for somebody who may have moved the log.
        if connection.get_execution_options().get("write"):
            watched = _watched(connection)
            try:
                files.require_sound()
                files.require_same(watched)
            except (DatabaseGone, DatabaseDamaged):
                watched.rollback()
                raise

    @event.listens_for(engine, "handle_error")
    def note(context: ExceptionContext) -> None:
        files.note(context.original_exception)


def _watched(connection: Connection) -> WatchedConnection:
    return cast(WatchedConnection, connection.connection.dbapi_connection)


def _note(connection: PoolProxiedConnection, error: sqlite3.DatabaseError) -> None:
    """What a statement told that went past the engine."""
    if isinstance(connection.dbapi_connection, WatchedConnection):
        connection.dbapi_connection.files.note(error)


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


def check_sound(engine: Engine) -> None:
    """Raise what keeps the database from being used; `DatabaseDamaged` once damage was found."""
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        if connection.dialect.name == "sqlite":
            _watched(connection).files.require_sound()


def checkpoint_wal(engine: Engine) -> None:
    """Move SQLite's log of newer pages into its file, so that no older page is left beside it.

    To be called after what was deleted or replaced was committed; logs what keeps it from doing so.
    """
    if engine.dialect.name == "sqlite":
        connection = engine.raw_connection()  # a checkpoint cannot run inside a transaction
        try:
            busy, _, _ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.DatabaseError as error:  # no space left, say: the erasure is committed
            _note(connection, error)
            _log.error("the write-ahead log keeps what was erased: %s", error)
        else:
            if busy:
                _log.warning("the write-ahead log keeps what was erased until the next sweep")
        finally:
            connection.close()


def mark_for_vacuum(connection: Connection) -> None:
    """Count a transaction that erases, so that `vacuum` finds something to do; one that writes."""
    if connection.dialect.name == "sqlite":
        count = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version={count + 1}")


def vacuum(engine: Engine, largest: int = _LARGEST_REWRITE) -> None:
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
    except sqlite3.DatabaseError as error:  # busy, or no space left: the next time, then
        _note(connection, error)
        _log.warning("traces of what was erased are left in a database: %s", error)
    finally:
        connection.close()


def storage_trouble(error: Exception) -> ServiceError | None:
    """What to tell a client when storage is at fault, not the request; None when it is not.

    Whatever was being written was rolled back.
    """
    match error:
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return _no_room_for_uploads() if _in_temporary_folder(error) else _full()
        case OSError() if _in_temporary_folder(error):
            return _out_of_reach("temporary folder")
        case OSError(errno=code) if code in _FILES_OUT_OF_REACH:
            return _out_of_reach("data folder")
        case PoolTimeoutError():
            return _busy()
        case DatabaseGone(committed=True):
            return _uncertain()
        case DatabaseGone():
            return _out_of_reach()
        case DatabaseDamaged():
            return _damaged()
        case DBAPIError(orig=sqlite3.DatabaseError() as cause) if is_damage(cause):
            return _damaged()
        case DBAPIError(orig=sqlite3.OperationalError() as cause):
            return _sqlite_trouble(cause)
        case OperationalError(orig=cause):
            full = getattr(cause, "sqlstate", None) == _POSTGRESQL_DISK_FULL
            return _full() if full else _out_of_reach()
        case _:
            return None


def _in_temporary_folder(error: BaseException) -> bool:
    """Whether it was raised for a file that Python keeps there: an upload that is being read.

    A file without a name has none in its errors, either.
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


def _no_room_for_uploads() -> ServiceError:
    return StorageFull(
        "There is no space left in the service's temporary folder, where uploads are kept while "
        "they are read, and nothing was changed. Free space there, or send less at a time."
    )


def _out_of_reach(what: str = "database") -> ServiceError:
    return Unavailable(
        f"The {what} cannot be written or reached, and nothing was changed. The service's log "
        "says why.",
        slug="database-unavailable",
        retry_after=10.0,
    )


def _uncertain() -> ServiceError:
    return Unavailable(
        "The database's files were removed or replaced while this was written, and it is not "
        "known whether it was kept. The service's log says what to do; ask then for what you sent.",
        slug="database-unavailable",
        retry_after=10.0,
    )


def _damaged() -> ServiceError:
    return Unavailable(
        "The database is damaged, and nothing was changed. Its operator must stop the service and "
        "restore a backup; the service's log says more.",
        slug="database-damaged",
        retry_after=60.0,
    )

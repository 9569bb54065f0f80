"""One database: engine, declarative base and migrations. SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar
from typing import cast as typed

import uuid_utils
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import (
    URL,
    BigInteger,
    Connection,
    DateTime,
    Dialect,
    Engine,
    ExceptionContext,
    TypeDecorator,
    cast,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Session

from service.foundation.settings import Settings
from service.storage import postgresql
from service.storage.database_files import (
    DatabaseDamaged,
    DatabaseFiles,
    DatabaseGone,
    WatchedConnection,
)
from service.storage.outages import watch_outages

_LOCK_WAIT_MS: Final = 10_000  # for another process that writes; a request then says 503
_CONNECTIONS: Final = 15
_STATEMENT_S: Final = 60.0
_NAMES: Final = 1000  # in one statement
_MIGRATIONS: Final = "migrations"


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


def in_pieces(items: Iterable[Item], size: int = _NAMES) -> Iterator[list[Item]]:
    """All of them, `size` at once; without it, as many as one statement may name."""
    left = iter(items)
    while piece := list(islice(left, size)):
        yield piece


def open_database(
    url: str,
    *,
    synchronous: Literal["FULL", "NORMAL"] = "FULL",
    lock_wait_ms: int | None = None,
    connections: int = _CONNECTIONS,
    statement_seconds: float = _STATEMENT_S,
) -> Engine:
    """Connect and set what every connection needs. A writer waits for another for `lock_wait_ms`.

    SQLite runs in WAL mode (readers never wait for the writer), with `synchronous=FULL` so that a
    commit that was acknowledged survives a power cut, foreign keys on, and `secure_delete` so that
    erased biometric data is overwritten in the file. A transaction takes the write lock when it
    begins with `BEGIN IMMEDIATE` (see `writing`), never half-way. With `synchronous="NORMAL"` a
    commit survives the end of the process but not a power cut.

    Once a file of the database is removed or replaced, every use raises `DatabaseGone`; once the
    database was found to be damaged, every write raises `DatabaseDamaged`.

    PostgreSQL (`service.storage.postgresql`) is given at most `connections` at once, and statements
    of at most `statement_seconds`; how it commits is the server's own setting. A commit during
    which the connection is lost raises `CommitUnknown`.

    Errors carry no parameters: they would bring subject ids into logs.
    """
    parsed = make_url(url)
    lock_wait_ms = lock_wait_ms or _LOCK_WAIT_MS
    match parsed.get_backend_name():
        case "sqlite":
            return _open_sqlite(parsed, synchronous, lock_wait_ms)
        case "postgresql" | "postgres":
            return _open_postgresql(parsed, lock_wait_ms, connections, statement_seconds)
        case other:
            raise ValueError(f"GaitID keeps its data in SQLite or PostgreSQL, not in {other}")


def open_configured(settings: Settings) -> Engine:
    """Open a deployment's database; see `open_database`."""
    return open_database(
        settings.resolved_database_url,
        connections=settings.database_connections,
        statement_seconds=settings.database_statement_seconds,
    )


def _open_postgresql(
    url: URL, lock_wait_ms: int, connections: int, statement_seconds: float
) -> Engine:
    engine = create_engine(
        url.set(drivername=postgresql.DRIVER),
        hide_parameters=True,
        isolation_level=postgresql.READING,
        pool_pre_ping=True,  # after a restart or a fail-over the first use finds new connections
        pool_size=connections,
        max_overflow=0,
        pool_timeout=lock_wait_ms / 1000,
        connect_args=postgresql.connect_args(url, lock_wait_ms, round(statement_seconds * 1000)),
    )
    postgresql.watch_errors(engine)
    postgresql.NewestPrimary(engine)
    watch_outages(engine)
    return engine


def _open_sqlite(url: URL, synchronous: str, lock_wait_ms: int) -> Engine:
    path = url.database if url.database != ":memory:" else None
    engine = create_engine(
        url,
        pool_pre_ping=not path,  # a file has no connection that could break; `_watch` looks at it
        hide_parameters=True,
        connect_args={"factory": WatchedConnection} if path else {},
    )
    _set_up_sqlite(engine, synchronous, lock_wait_ms)
    if path:
        _watch(engine, DatabaseFiles(path))
    return engine


def _set_up_sqlite(engine: Engine, synchronous: str, lock_wait_ms: int) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's "begin" event emits BEGIN, below
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "foreign_keys=ON",
            "secure_delete=ON",
            f"busy_timeout={lock_wait_ms}",
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
        files.check_idle(connection)

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
    return typed(WatchedConnection, connection.connection.dbapi_connection)


def writing(engine: Engine) -> Engine:
    """An engine on the same connections whose transactions write.

    SQLite's begin with the write lock, so there is one at a time. PostgreSQL's run beside each
    other: each locks the rows that it depends on, or calls `take_turns`.
    """
    if engine.dialect.name == "sqlite":
        return engine.execution_options(write=True)
    return engine.execution_options(write=True, isolation_level=postgresql.WRITING)


def take_turns(connection: Connection | Session, at: str, *, shared: bool = False) -> None:
    """Wait, in a transaction that writes, for all others that take turns at the same.

    For what no row stands for. Those with `shared` wait for none of their kind. SQLite has but one
    writer, which has had its turn already.
    """
    on = connection.connection() if isinstance(connection, Session) else connection
    if on.dialect.name != "sqlite":
        key = int.from_bytes(hashlib.sha256(at.encode()).digest()[:8], "big", signed=True)
        lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        on.execute(select(lock(cast(key, BigInteger))))


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
        if connection.dialect.name != "sqlite":
            for limit in ("lock_timeout", "statement_timeout"):  # it may take as long as it takes
                connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
        take_turns(connection, _MIGRATIONS)
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

"""One database: engine, declarative base and migrations. SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import uuid_utils
from alembic import command
from alembic.config import Config
from sqlalchemy import DateTime, Dialect, Engine, TypeDecorator, create_engine, event
from sqlalchemy.orm import DeclarativeBase


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


def open_database(url: str) -> Engine:
    """Connect and set what every connection needs.

    SQLite runs in WAL mode (readers never wait for the writer), with `synchronous=FULL` so that a
    commit that was acknowledged survives a power cut, foreign keys on, and `secure_delete` so that
    erased biometric data is overwritten in the file. A transaction takes the write lock when it
    begins with `BEGIN IMMEDIATE` (see `writing`), never half-way.
    """
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: object) -> None:
            connection.isolation_level = None  # SQLAlchemy's "begin" event emits BEGIN, below
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
                "secure_delete=ON",
                "busy_timeout=30000",
            ):
                connection.execute(f"PRAGMA {pragma}")

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


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest version; safe when several processes start at once."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

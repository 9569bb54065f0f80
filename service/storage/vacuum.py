"""Remove the traces that deleted rows leave in the database's files.

SQLite: `secure_delete` overwrites what is deleted. The write-ahead log still holds older pages, and
where a row had moved from one page to another before, the unused part of the old page may hold a
copy.

PostgreSQL: what was deleted stays in its table, and in indexes, until a vacuum takes it away. That
frees the space and does not overwrite it; nor does it reach the write-ahead log, which the server
drops by itself (docs/operations.md).
"""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.exc import SQLAlchemyError

from service.storage.database import Table
from service.storage.database_files import WatchedConnection

_log = logging.getLogger(__name__)
_LARGEST_VACUUM = 250_000_000
_PAUSES_S = (0.0, 0.1, 0.4, 1.0)  # before each attempt: transactions that began before must end
# Without giving the end of a file back, for which everybody would have to wait.
_VACUUM = "VACUUM (VERBOSE, TRUNCATE off, INDEX_CLEANUP on)"
_KEPT = re.compile(r"(\d+) (?:are dead but not yet removable|dead row versions cannot be removed)")


def clear_traces(engine: Engine, tables: MetaData = Table.metadata) -> bool:
    """Clear what deleted rows have left: SQLite's write-ahead log, PostgreSQL's `tables`.

    Call it after the transaction that deleted something has committed. Returns whether nothing is
    left; logs what prevents it.
    """
    if engine.dialect.name != "sqlite":
        return _vacuum_tables(engine, tables)
    with _cursor(engine, logging.ERROR, "the write-ahead log keeps what was erased: %s") as cursor:
        busy, _, _ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return True
        _log.warning("the write-ahead log keeps what was erased until the next sweep")
    return False


def _vacuum_tables(engine: Engine, tables: MetaData, *, at_any_length: bool = False) -> bool:
    """Vacuum PostgreSQL's tables; returns whether no dead row is left in them."""
    statement = f"{_VACUUM} {', '.join(tables.tables)}"
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if at_any_length:
                connection.exec_driver_sql("SET statement_timeout = 0")
            try:
                for pause in _PAUSES_S:
                    time.sleep(pause)
                    if _left_by(connection, statement, len(tables.tables)) == 0:
                        return True
            finally:
                if at_any_length:
                    connection.exec_driver_sql("RESET statement_timeout")
    except SQLAlchemyError as error:
        _log.warning("what was erased is left in tables until the next sweep: %s", error)
    else:
        _log.warning("an older transaction keeps what was erased in tables until the next sweep")
    return False


def _left_by(connection: Connection, vacuum: str, tables: int) -> int | None:
    """How many dead rows a vacuum had to leave; None if it did not say so of each table."""
    said: list[str] = []

    def note(diagnostic: Any) -> None:
        said.append(diagnostic.message_primary or "")

    driven: Any = connection.connection.driver_connection
    driven.add_notice_handler(note)
    try:
        connection.exec_driver_sql(vacuum)
    finally:
        driven.remove_notice_handler(note)
    kept = [int(number) for text in said for number in _KEPT.findall(text)]
    return sum(kept) if len(kept) >= tables else None


def mark_for_vacuum(connection: Connection) -> None:
    """Count a transaction that erases, so that `vacuum` runs; call it in that transaction."""
    if connection.dialect.name == "sqlite":
        count = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version={count + 1}")


def vacuum(
    engine: Engine, largest: int = _LARGEST_VACUUM, *, tables: MetaData = Table.metadata
) -> None:
    """Write SQLite's file anew if something was erased since the last time.

    Writers wait meanwhile, some seconds for 250 MB. A file of more than `largest` bytes is left as
    it is. Logs what prevents it. PostgreSQL's tables are vacuumed, however long that takes.
    """
    if engine.dialect.name != "sqlite":
        _vacuum_tables(engine, tables, at_any_length=True)
        return
    trouble = "traces of what was erased are left in a database: %s"  # busy or full; until the next
    with _cursor(engine, logging.WARNING, trouble) as cursor:
        erasures, pages, page_size = (
            cursor.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("user_version", "page_count", "page_size")
        )
        if not erasures:
            return
        if pages * page_size > largest:
            _log.warning("a database with traces of what was erased is too large to be rewritten")
            return
        cursor.execute("VACUUM")
        cursor.execute("BEGIN IMMEDIATE")
        if cursor.execute("PRAGMA user_version").fetchone()[0] == erasures:
            cursor.execute("PRAGMA user_version=0")  # nothing was erased meanwhile
        cursor.execute("COMMIT")


@contextmanager
def _cursor(engine: Engine, level: int, trouble: str) -> Iterator[sqlite3.Cursor]:
    """A cursor outside of any transaction; an error of SQLite's is logged as `trouble`.

    The erasure itself is committed, so nobody is told of a failure here but the log.
    """
    connection = engine.raw_connection()
    try:
        yield connection.cursor()  # type: ignore[misc]
    except sqlite3.DatabaseError as error:
        if isinstance(connection.dbapi_connection, WatchedConnection):
            connection.dbapi_connection.files.note(error)  # the engine did not see it
        _log.log(level, trouble, error)
    finally:
        connection.close()

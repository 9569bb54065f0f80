"""Remove the traces that deleted rows leave in SQLite's files; PostgreSQL has its own vacuum.

`secure_delete` overwrites what is deleted. The write-ahead log still holds older pages, and where a
row had moved from one page to another before, the unused part of the old page may hold a copy.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from service.storage.database_files import WatchedConnection

_log = logging.getLogger(__name__)
_LARGEST_VACUUM = 250_000_000


def checkpoint_wal(engine: Engine) -> None:
    """Move SQLite's write-ahead log into the database file, so that no older page is left in it.

    Call it after the transaction that deleted something has committed. Logs what prevents it.
    """
    if engine.dialect.name != "sqlite":
        return
    with _cursor(engine, logging.ERROR, "the write-ahead log keeps what was erased: %s") as cursor:
        busy, _, _ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            _log.warning("the write-ahead log keeps what was erased until the next sweep")


def mark_for_vacuum(connection: Connection) -> None:
    """Count a transaction that erases, so that `vacuum` runs; call it in that transaction."""
    if connection.dialect.name == "sqlite":
        count = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version={count + 1}")


def vacuum(engine: Engine, largest: int = _LARGEST_VACUUM) -> None:
    """Write SQLite's file anew if something was erased since the last time.

    Writers wait meanwhile, some seconds for 250 MB. A file of more than `largest` bytes is left as
    it is. Logs what prevents it.
    """
    if engine.dialect.name != "sqlite":
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

"""What SQLite does to carry out statements, and how it is told to behave."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Pool, event


@contextmanager
def pragma_of_every_connection(first: str) -> Iterator[Callable[[str], None]]:
    """Sets a PRAGMA each time the service takes a connection; call it for another one."""
    current = first

    def checkout(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        connection.execute(f"PRAGMA {current}").close()

    def change(pragma: str) -> None:
        nonlocal current
        current = pragma

    event.listen(Pool, "checkout", checkout)
    try:
        yield change
    finally:
        event.remove(Pool, "checkout", checkout)


@contextmanager
def plans(engine: Engine) -> Iterator[dict[str, list[str]]]:
    """Of every statement that is executed meanwhile, how SQLite finds the rows."""
    found: dict[str, list[str]] = {}

    def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            asked = cursor.connection.cursor()
            steps = asked.execute(f"EXPLAIN QUERY PLAN {statement}", parameters or ()).fetchall()
            found[statement] = [step[3] for step in steps]

    def explain_one(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        explain(connection, cursor, statement, parameters[0] if many else parameters, context)

    event.listen(engine, "before_cursor_execute", explain_one)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", explain_one)


@contextmanager
def instructions_of_writes(engine: Engine | type[Engine]) -> Iterator[list[int]]:
    """Of every transaction that holds the write lock and is committed meanwhile, how many
    instructions of SQLite's machine it takes; of every engine there is when given the class.
    """
    found: list[int] = []

    def begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("write"):
            return
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        driven: Any = connection.connection.driver_connection
        driven.set_progress_handler(step, 1)
        counting[connection] = lambda: count

    def end(connection: Connection) -> None:
        if counter := counting.pop(connection, None):
            driven: Any = connection.connection.driver_connection
            driven.set_progress_handler(None, 0)
            found.append(counter())

    counting: dict[Connection, Any] = {}
    for name, listener in (("begin", begin), ("commit", end)):
        event.listen(engine, name, listener)
    try:
        yield found
    finally:
        for name, listener in (("begin", begin), ("commit", end)):
            event.remove(engine, name, listener)

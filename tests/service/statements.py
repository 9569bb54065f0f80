"""What SQLite does to carry out statements, so that a test can say what must not grow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event


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

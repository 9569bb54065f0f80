"""What is particular to PostgreSQL: how connections are made, how long they wait, what is lost.

Everything else is the same as with SQLite. A transaction that only reads sees one moment of the
database (REPEATABLE READ, as SQLite's do). One that writes sees what others have committed before
each statement, and locks what must not change meanwhile; who has nothing to lock takes a turn
(`service.storage.database.take_turns`).
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import URL, Engine, ExceptionContext, event
from sqlalchemy.exc import SQLAlchemyError

DRIVER: Final = "postgresql+psycopg"
READING: Final = "REPEATABLE READ"
WRITING: Final = "READ COMMITTED"

_IDLE_IN_TRANSACTION_S: Final = 60  # then its locks are released: who holds them has stopped
_NEW_SERVER: Final = frozenset({"25006", "57P01", "57P02", "57P03"})
"""States in which another connection helps: read-only (a former primary), or shutting down."""

# A host that has gone, without a word, is noticed by either side within about 15 seconds.
_CLIENT: Final = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "target_session_attrs": "read-write",  # of several hosts, or behind one name, the primary
}
_SERVER: Final = {
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 3,
    "tcp_keepalives_count": 3,
    "idle_in_transaction_session_timeout": _IDLE_IN_TRANSACTION_S * 1000,
}


class CommitUnknown(SQLAlchemyError):
    """The connection was lost during a commit, which may have been made or not."""


def connect_args(url: URL, lock_wait_ms: int, statement_ms: int) -> dict[str, Any]:
    """What each connection is made with; what the URL says goes first."""
    limits = {**_SERVER, "lock_timeout": lock_wait_ms, "statement_timeout": statement_ms}
    options = " ".join(f"-c {name}={value}" for name, value in limits.items())
    given = url.query
    own = {name: value for name, value in _CLIENT.items() if name not in given}
    return {**own, "options": f"{options} {given.get('options', '')}".strip()}


def watch_errors(engine: Engine) -> None:
    """Drop connections to a server that is no good any more; tell a commit that may be lost.

    Errors lose their details, which would bring subject ids into logs.
    """

    @event.listens_for(engine, "handle_error")
    def note(context: ExceptionContext) -> Exception | None:
        if (said := _without_details(context.original_exception)) is not None:
            context.original_exception.args = (said,)
            if context.sqlalchemy_exception is not None:
                context.sqlalchemy_exception.args = (said,)
        if state_of(context.original_exception) in _NEW_SERVER:
            context.is_disconnect = True
        ends = context.connection is not None and context.statement is None
        if ends and context.is_disconnect and not context.is_pre_ping:
            return CommitUnknown("the connection was lost during a commit")
        return None


def _without_details(error: BaseException) -> str | None:
    """What PostgreSQL says of an error in general; None for an error that is not its own."""
    state = state_of(error)
    diag = getattr(error, "diag", None)
    primary = getattr(diag, "message_primary", None)
    return None if state is None or primary is None else f"({type(error).__name__}) {primary}"


def state_of(error: BaseException | None) -> str | None:
    """PostgreSQL's five characters for an error; None for an error that has none."""
    state: str | None = getattr(error, "sqlstate", None)
    return state

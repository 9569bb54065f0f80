"""What is particular to PostgreSQL: how connections are made, how long they wait, what is lost.

Everything else is the same as with SQLite. A transaction that only reads sees one moment of the
database (REPEATABLE READ, as SQLite's do). One that writes sees what others have committed before
each statement, and locks what must not change meanwhile; who has nothing to lock takes a turn
(`service.storage.database.take_turns`).
"""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy import URL, Dialect, Engine, ExceptionContext, event
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

_log = logging.getLogger(__name__)


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


class NewestPrimary:
    """Connects an engine to that one of its URL's servers which was promoted last.

    A former primary that is started again takes writes as the new one does: `read-write` cannot
    tell them apart. But each promotion begins a timeline with a higher number, so the server with
    the highest is taken, and one that is behind any seen before is refused. All are compared at the
    first connection, and after a connection was lost or refused.
    """

    def __init__(self, engine: Engine) -> None:
        """Make an engine's connections from now on; a URL's only server needs no comparison."""
        self._timeline = 0
        self._chosen: dict[str, str] | None = None
        self._former: set[str] = set()  # hosts that the log has named
        event.listen(engine, "do_connect", self._connect)
        event.listen(engine, "handle_error", self._note)

    def _note(self, context: ExceptionContext) -> None:
        if context.is_disconnect:
            self._chosen = None

    def _connect(
        self, dialect: Dialect, _record: object, _args: object, given: dict[str, Any]
    ) -> Any:
        servers = _servers(given)
        if len(servers) == 1:
            return None  # SQLAlchemy connects
        if (chosen := self._chosen) is not None:
            try:
                return self._newest(dialect, given, [chosen])
            except dialect.loaded_dbapi.OperationalError:
                self._chosen = None
        return self._newest(dialect, given, servers)

    def _newest(
        self, dialect: Dialect, given: dict[str, Any], servers: list[dict[str, str]]
    ) -> Any:
        error = dialect.loaded_dbapi.OperationalError
        found, refused = [], error("no server is named")
        for server in servers:
            try:
                connection = dialect.connect(**{**given, **server})
            except error as said:  # a standby, or one that is away
                refused = said
            else:
                found.append((_timeline(connection), server, connection))
        self._timeline = max([self._timeline, *(timeline for timeline, *_ in found)])
        newest = None
        for timeline, server, connection in found:
            if timeline == self._timeline and newest is None:
                self._chosen, newest = server, connection
                continue
            connection.close()
            if timeline < self._timeline:
                refused = error("only a former primary answers")
                if server["host"] not in self._former:
                    _log.warning("a former primary takes writes again, stop it: %s", server["host"])
                self._former.add(server["host"])
        if newest is None:
            raise refused
        return newest


def _servers(given: dict[str, Any]) -> list[dict[str, str]]:
    """Host and port of each server that libpq would try."""
    hosts, ports = given.get("host", "").split(","), str(given.get("port", "")).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports  # one is that of all
    return [{"host": host, "port": port} for host, port in zip(hosts, ports, strict=True)]


def _timeline(connection: Any) -> int:
    """The number of the timeline on which a server writes, from the name of its log's file."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_walfile_name(pg_current_wal_lsn())")
            name: str = cursor.fetchone()[0]
        connection.rollback()
    except Exception:
        connection.close()
        raise
    return int(name[:8], 16)


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

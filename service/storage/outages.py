"""Two lines in the log for each time that PostgreSQL is away: when it goes, and when it is back.

What fails meanwhile, fails for that reason: errors that `failures.is_away` is true of need no lines
of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import cache

from sqlalchemy import URL, Engine, ExceptionContext, event

from service.storage.failures import is_away

_log = logging.getLogger(__name__)


class _Outage:
    """Whether a database is away, as seen by all of a process's engines."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._lock = threading.Lock()

    def begin(self, context: ExceptionContext) -> None:
        # An idle connection that has broken says nothing of now: the next one is tried at once.
        if context.is_pre_ping or not is_away(context.sqlalchemy_exception):
            return
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                _log.warning("the database is away: %s", context.original_exception)

    def end(self, *_: object) -> None:
        if self._since is None:
            return
        with self._lock:
            if self._since is not None:
                _log.warning("the database is back after %.1f s", time.monotonic() - self._since)
                self._since = None


def watch_outages(engine: Engine) -> None:
    """Log when an engine's database goes away, and when it is back."""
    outage = _outage_of(engine.url)
    event.listen(engine, "handle_error", outage.begin)
    event.listen(engine, "checkout", outage.end)  # of a connection that has just answered


@cache
def _outage_of(_url: URL) -> _Outage:
    return _Outage()

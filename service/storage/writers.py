"""Separate threads for database writes.

Writers wait for each other: for SQLite's one write lock, or for their gallery's row. On the threads
and connections that readers use, a few of them would make every reader wait as well.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError

from service.storage.failures import was_rolled_back

_AT_ONCE = 8  # of the 15 connections that an engine opens
_ATTEMPTS = 4
_PAUSE_S = 0.05  # at most, before another attempt; in two processes not the same
_log = logging.getLogger(__name__)

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Writers:
    """Runs blocking writes off the event loop, a few at a time; the others queue."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, "writer")

    async def run(
        self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Run the work in a writer's thread, in the caller's context (as `asyncio.to_thread`).

        It is run again if PostgreSQL rolled its transaction back because of another one.
        """
        context = copy_context()
        again = partial(run_again, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: context.run(again)
        )

    def close(self) -> None:
        """Wait for the running and queued writes."""
        self._threads.shutdown()


def run_again(work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """Run a transaction, and again, a few times, while PostgreSQL rolls it back in a deadlock.

    Which of two that wait for each other goes on is chance; neither has done anything wrong.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return work(*args, **kwargs)
        except DBAPIError as error:
            if not was_rolled_back(error):
                raise
            _log.warning("a transaction was rolled back and is run again: %s", error.orig)
            time.sleep(random.uniform(0, _PAUSE_S))  # noqa: S311
    return work(*args, **kwargs)

"""Separate threads for database writes.

Writers wait for each other: for SQLite's one write lock, or for their gallery's row. On the threads
and connections that readers use, a few of them would make every reader wait as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

_AT_ONCE = 8  # of the 15 connections that an engine opens

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Writers:
    """Runs blocking writes off the event loop, a few at a time; the others queue."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, "writer")

    async def run(
        self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Run the work in a writer's thread, in the caller's context (as `asyncio.to_thread`)."""
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: context.run(work, *args, **kwargs)
        )

    def close(self) -> None:
        """Wait for the running and queued writes."""
        self._threads.shutdown()

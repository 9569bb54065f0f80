"""SIGTERM: finish the step at hand, save, and leave."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = 128 + signal.SIGTERM


class Stopped(BaseException):
    """The run was asked to stop. Not an Exception: nothing that handles errors may swallow it."""


class StopRequest:
    """Turns SIGTERM into `Stopped`: at once, or where the code says that it can stop."""

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False

    def install(self) -> None:
        """Take over SIGTERM; only in the main thread."""
        signal.signal(signal.SIGTERM, self._receive)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal only sets `asked`; the code looks when it can stop."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`, a signal stops at once again: for long work that can be lost."""
        before, self._deferred = self._deferred, False
        try:
            if self.asked:
                raise Stopped
            yield
        finally:
            self._deferred = before

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if not self._deferred:
            raise Stopped

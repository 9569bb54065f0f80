"""Something that is told to the database again and again while a block lasts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from service.storage.failures import is_away

_log = logging.getLogger(__name__)


class Repeating:
    """Does something at once and then at intervals, in a thread, until the block ends.

    What the database refuses is tried again, sooner; of failures in a row the first one is logged.
    """

    def __init__(
        self, name: str, work: Callable[[], None], *, every_s: float, retry_s: float, failed: str
    ) -> None:
        """`failed` says in the log what was not done."""
        self._work = work
        self._every_s = every_s
        self._retry_s = retry_s
        self._failed = failed
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Do it no more; the work itself may say so."""
        self._done.set()

    def _run(self) -> None:
        pause, silent = 0.0, False
        while not self._done.wait(pause):
            try:
                self._work()
            except SQLAlchemyError as error:
                if not silent and not is_away(error):
                    _log.warning("%s: %s", self._failed, error)
                pause, silent = self._retry_s, True
            else:
                pause, silent = self._every_s, False

"""What a child says, taken to the database; and the lease that is kept alive meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import IO

from service.jobs import events
from service.jobs.events import Failed, Progress, RunEvent
from service.jobs.job import Status
from service.jobs.queue import JobQueue, Lease
from service.jobs.reasons import OUTPUT

_RENEWALS = 3  # while a lease would last without


class Tenure:
    """Keeps a lease alive, by being asked where its job stands."""

    def __init__(self, queue: JobQueue, lease: Lease) -> None:
        self._queue = queue
        self._lease = lease
        self._renew_at = 0.0

    def status(self) -> Status:
        """Where the job stands now; renews the lease when it is time."""
        if time.monotonic() >= self._renew_at:
            self._queue.heartbeat(self._lease)
            self._renewed()
        return self._queue.status(self._lease)

    def record(self, reported: Sequence[RunEvent]) -> None:
        """Record what was reported, which renews the lease too."""
        self._queue.record(self._lease, reported)
        self._renewed()

    def _renewed(self) -> None:
        self._renew_at = time.monotonic() + self._queue.lease_seconds / _RENEWALS


class Relay:
    """Takes a child's lines to the database and to the job's log."""

    def __init__(self, tenure: Tenure, log: IO[bytes]) -> None:
        self._tenure = tenure
        self._log = log
        self._reported: list[RunEvent] = []  # and not recorded yet
        self.failure: str | None = None  # why the child itself says that it failed

    def read(self, lines: Sequence[str]) -> None:
        """Find the events among `lines`; what is no event goes to the job's log."""
        for line in lines:
            event = events.parse(line)
            if event is None:
                self._log.write(f"{OUTPUT}{line}\n".encode(errors="replace"))
                continue
            if isinstance(event, Failed):
                self.failure = event.reason
                continue  # becomes the job's error
            newest = self._reported[-1] if self._reported else None
            if isinstance(event, Progress) and isinstance(newest, Progress):
                self._reported.pop()  # only the newest of a burst: bounds a fast run's history
            self._reported.append(event)
        self._log.flush()

    def send(self) -> None:
        """Record what was read; until that was done once, it may be tried again."""
        if self._reported:
            self._tenure.record(self._reported)
            self._reported = []

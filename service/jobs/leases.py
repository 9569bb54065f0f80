"""Leases over time: keep one alive while its job runs, notice those that nobody renews."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from service.jobs.events import RunEvent
from service.jobs.job import Status
from service.jobs.queue import Heartbeat, JobQueue, Lease

_RENEWALS = 3  # in the time after which a lease expires
_LEAST_LOOKS = 10  # in that time


class LeaseKeeper:
    """Renews a lease whenever it is asked for the job's status and a third of its time is over."""

    def __init__(self, queue: JobQueue, lease: Lease) -> None:
        self._queue = queue
        self._lease = lease
        self._renew_at = 0.0

    def status(self) -> Status:
        """The job's status; renews the lease when it is time. Raises `LeaseLost`."""
        if time.monotonic() >= self._renew_at:
            self._queue.heartbeat(self._lease)
            self._renewed()
        return self._queue.status(self._lease)

    def record(self, reported: Sequence[RunEvent]) -> None:
        """Record what was reported, which renews the lease too. Raises `LeaseLost`."""
        self._queue.record(self._lease, reported)
        self._renewed()

    def _renewed(self) -> None:
        self._renew_at = time.monotonic() + self._queue.lease_seconds / _RENEWALS


class LeaseObserver:
    """Finds leases of other processes that have expired. One for all workers of a process.

    A lease has expired when its holder has not renewed it for as long as this process observed it,
    by this process's monotonic clock; no recorded time counts, so the wall clock may be set at any
    moment. Time between two looks counts only up to a tenth of that: a process that was itself
    stopped, or slept with its machine, wakes together with those that it observes, and gives them
    time to renew.

    Leases of this process never expire, however long a disk or a database makes it wait.
    """

    def __init__(
        self, lease_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """A lease expires after `lease_seconds` without a heartbeat."""
        self._lease_seconds = lease_seconds
        self._most_at_once = lease_seconds / _LEAST_LOOKS
        self._clock = clock
        self._lock = threading.Lock()  # its workers are threads
        self._own: set[tuple[str, int]] = set()
        self._silence: dict[Heartbeat, float] = {}  # seconds
        self._looked_at = clock()

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """Count a lease as this process's own until the block ends."""
        own = (lease.job.id, lease.number)
        with self._lock:
            self._own.add(own)
        try:
            yield
        finally:
            with self._lock:
                self._own.discard(own)

    def expired(self, heartbeats: Iterable[Heartbeat]) -> list[Heartbeat]:
        """Those, of the heartbeats of all running jobs, which have been the same for too long.

        Each is returned once and then counted anew, in case its job could not be reclaimed.
        """
        with self._lock:
            now = self._clock()
            passed = min(now - self._looked_at, self._most_at_once)
            self._looked_at = now
            others = {
                heartbeat
                for heartbeat in heartbeats
                if (heartbeat.job_id, heartbeat.number) not in self._own
            }
            self._silence = {
                heartbeat: self._silence[heartbeat] + passed if heartbeat in self._silence else 0.0
                for heartbeat in others
            }
            expired = [
                heartbeat for heartbeat in others if self._silence[heartbeat] >= self._lease_seconds
            ]
            for heartbeat in expired:
                del self._silence[heartbeat]
            return expired

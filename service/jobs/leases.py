"""Leases over time: keep one alive while its job runs, notice those that nobody renews."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from service.jobs.events import RunEvent
from service.jobs.job import Status
from service.jobs.queue import Heartbeat, JobQueue, Lease, LeaseLost
from service.jobs.repeating import Repeating

_RENEWALS = 3  # in the time after which a lease expires
_TRIES = 30  # in that time, while the database does not answer
_CERTAIN = 5 / 6  # of that time, after which nothing may run under a lease that was not renewed
_LEAST_LOOKS = 10  # in that time


class LeaseKeeper:
    """Keeps a lease for as long as the block lasts: a thread of its own renews it.

    A worker that cannot reach the database may have lost its lease without a word of it. Nobody
    else takes the job within `lease_seconds` of a renewal's end (see `LeaseObserver`), so until
    five sixths of them after a renewal's beginning the lease is certain to hold, by the monotonic
    clock of this machine; the last sixth is for clocks that do not run alike, and for a child to
    die. `ends_at` is that moment. It is infinite where the database is a file of this machine: what
    keeps this worker from writing there keeps others from taking its job, and one attempt at a time
    has the lock of the job's folder.
    """

    def __init__(self, queue: JobQueue, lease: Lease) -> None:
        self._queue = queue
        self._lease = lease
        self._ends_at = 0.0
        self._tell: Callable[[float], None] | None = None
        self._lock = threading.Lock()
        self._renewing = Repeating(
            "lease-keeper",
            self._renew_unless_lost,
            every_s=queue.lease_seconds / _RENEWALS,
            retry_s=queue.lease_seconds / _TRIES,
            failed=f"job {lease.job.id}: the lease is not renewed",
        )

    def __enter__(self) -> Self:
        self._renewing.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._renewing.__exit__()

    @property
    def last_grace_s(self) -> float:
        """The longest time that a command may have to end once the lease is not certain."""
        return self._queue.lease_seconds * (1 - _CERTAIN)

    @property
    def ends_at(self) -> float:
        """Until when the lease is certain to hold, by the monotonic clock."""
        return self._ends_at if self._queue.several_hosts else math.inf

    @contextmanager
    def telling(self, tell: Callable[[float], None]) -> Iterator[None]:
        """Call `tell` with `ends_at` after each renewal until the block ends."""
        with self._lock:
            self._tell = tell
        try:
            yield
        finally:
            with self._lock:
                self._tell = None

    def renew(self) -> None:
        """Renew the lease now; raises `LeaseLost`."""
        begin = time.monotonic()
        self._queue.heartbeat(self._lease)
        self._renewed(begin)

    def status(self) -> Status:
        """The job's status. Raises `LeaseLost`."""
        return self._queue.status(self._lease)

    def record(self, reported: Sequence[RunEvent]) -> None:
        """Record what was reported, which renews the lease too. Raises `LeaseLost`."""
        begin = time.monotonic()
        self._queue.record(self._lease, reported)
        self._renewed(begin)

    def _renewed(self, begin: float) -> None:
        with self._lock:
            self._ends_at = max(self._ends_at, begin + self._queue.lease_seconds * _CERTAIN)
            if self._tell is not None:
                self._tell(self.ends_at)

    def _renew_unless_lost(self) -> None:
        try:
            self.renew()
        except LeaseLost:  # which the worker finds, too
            self._renewing.stop()


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

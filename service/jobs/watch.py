"""Who is dead: jobs whose worker has given no sign of life for as long as this process watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from service.jobs.queue import Beat, Lease

_LEAST_LOOKS = 10


class Watch:
    """Counts for how long other processes have not renewed their leases. One for all of a process.

    Two readings of this process's monotonic clock decide, and no time that anybody wrote down, so
    the wall clock may be set as it likes. Time in which nobody looked counts for little: a process
    that was itself stopped, or slept with its machine, wakes together with those that it watches,
    and gives them time to show it.

    What this process runs itself is never dead, however long a disk or a database lets it wait.
    """

    def __init__(
        self, lease_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`lease_seconds` is for how long a worker may be silent."""
        self._patience = lease_seconds
        self._most_at_once = lease_seconds / _LEAST_LOOKS
        self._clock = clock
        self._lock = threading.Lock()  # its workers are threads
        self._own: set[tuple[str, int]] = set()
        self._silence: dict[Beat, float] = {}  # seconds
        self._looked_at = clock()

    @contextmanager
    def running(self, lease: Lease) -> Iterator[None]:
        """What this process does itself for as long as the block lasts."""
        own = (lease.job.id, lease.number)
        with self._lock:
            self._own.add(own)
        try:
            yield
        finally:
            with self._lock:
                self._own.discard(own)

    def silent(self, beats: Iterable[Beat]) -> list[Beat]:
        """Those of all jobs that run now which have been the same for too long.

        Each is named once and then counted anew, in case it could not be taken back.
        """
        with self._lock:
            now = self._clock()
            passed = min(now - self._looked_at, self._most_at_once)
            self._looked_at = now
            heard = {beat for beat in beats if (beat.job_id, beat.number) not in self._own}
            self._silence = {
                beat: self._silence[beat] + passed if beat in self._silence else 0.0
                for beat in heard
            }
            silent = [beat for beat in heard if self._silence[beat] >= self._patience]
            for beat in silent:
                del self._silence[beat]
            return silent

"""Streams of job events: one query at a time serves all streams of a process.

A stream reads from the database what happened before it began. Then it waits for a feed, which one
task fills for every job that is followed. What a feed no longer has is read from the database
again, so a stream has every event once and in order, however late or slow it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from service.foundation.errors import CutOff, Unavailable
from service.jobs.job import JobEvent, Status
from service.jobs.queue import JobQueue, Updates
from service.storage.failures import is_away

_log = logging.getLogger(__name__)

_POLL_S = 0.4
_KEPT = 50  # events of a job for streams that are a little behind
_RETRY_S = 10.0
_READERS = 2  # of history at once: many streams that reconnect together leave threads to others


class _Feed:
    """New events of one job."""

    def __init__(self) -> None:
        self.streams = 0
        self.newest: int | None = None  # unknown until the first poll
        self.ended = False  # no event will come after `newest`
        self.failed = False
        self.changed = asyncio.Event()
        self._kept: deque[JobEvent] = deque(maxlen=_KEPT)

    def add(self, updates: Updates) -> None:
        """Add what a poll has found, and wake the streams if that is anything."""
        if (updates.newest, updates.ended) == (self.newest, self.ended):
            return
        self._kept.extend(updates.events)
        self.newest, self.ended = updates.newest, updates.ended
        self.wake()

    def fail(self) -> None:
        """Wake the streams, because nobody polls any more."""
        self.failed = True
        self.wake()

    def wake(self) -> None:
        """Have the streams look what is new."""
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, sequence: int) -> list[JobEvent] | None:
        """The events after one; None if they must be read from the database."""
        if self.newest is None:
            return None
        if sequence >= self.newest:
            return []
        if not self._kept or self._kept[0].sequence > sequence + 1:
            return None
        return [event for event in self._kept if event.sequence > sequence]


class EventStreams:
    """The streams of one process; for one event loop."""

    def __init__(
        self, queue: JobQueue, *, most: int, most_per_caller: int, poll_s: float = _POLL_S
    ) -> None:
        """Serve at most `most` streams at once; poll the database every `poll_s`."""
        self._queue = queue
        self._most = most
        self._most_per_caller = most_per_caller
        self._poll_s = poll_s
        self._open: Counter[str] = Counter()  # by caller
        self._feeds: dict[str, _Feed] = {}
        self._reading = asyncio.Semaphore(_READERS)
        self._polling: asyncio.Task[None] | None = None
        self.ended = False

    def end(self) -> None:
        """End all streams where they are, and new ones as they begin: the service stops."""
        self.ended = True
        for feed in self._feeds.values():
            feed.wake()

    @contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """Count a stream of a caller's; raises `Unavailable` when too many are open."""
        if self._open[caller] >= self._most_per_caller or self._open.total() >= self._most:
            raise Unavailable(
                "Too many streams of events are open. Close some, or ask GET /jobs/{job_id} now "
                "and then instead.",
                slug="too-many-streams",
                retry_after=_RETRY_S,
            )
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    async def follow(self, job_id: str, after: int) -> AsyncGenerator[JobEvent, None]:
        """Events after the number `after` as they come, until the job has ended.

        Ends with the job also for a number that is higher than any event's, and before the job
        once all streams were ended. Raises `CutOff` when polling failed.
        """
        feed = self._join(job_id)
        try:
            while True:
                # Taken before reading: what comes meanwhile is found the next time round.
                ended, changed = feed.ended, feed.changed
                if self.ended:
                    return
                events = feed.after(after)
                if events is None:
                    async with self._reading:
                        events = await asyncio.to_thread(self._queue.events, job_id, after=after)
                for event in events:
                    after = event.sequence
                    yield event
                    if event.kind == "status" and Status(event.data["status"]).final:
                        return
                if events:
                    continue
                if ended:
                    return
                if feed.failed:
                    raise CutOff(f"nobody looks for news of job {job_id} any more")
                await changed.wait()
        finally:
            feed.streams -= 1
            if not feed.streams and self._feeds.get(job_id) is feed:
                del self._feeds[job_id]

    def _join(self, job_id: str) -> _Feed:
        feed = self._feeds.setdefault(job_id, _Feed())
        feed.streams += 1
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(), name="follow jobs")
        return feed

    async def _poll(self) -> None:
        """Poll for as long as there are streams."""
        try:
            while self._feeds:
                await self._poll_once()
                await asyncio.sleep(self._poll_s)
        finally:  # after a bug, or at the end of the service
            for feed in self._feeds.values():
                feed.fail()
            self._feeds = {}

    async def _poll_once(self) -> None:
        seen = {job_id: feed.newest for job_id, feed in self._feeds.items()}
        try:
            updates = await asyncio.to_thread(self._queue.updates, seen)
        except SQLAlchemyError as error:  # busy, or out of reach: the streams wait
            if not is_away(error):
                _log.warning("no news of jobs: %s", error)
            return
        for job_id, new in updates.items():
            feed = self._feeds.get(job_id)
            # A feed that was left and joined again meanwhile begins with its own first poll.
            if feed is not None and feed.newest == seen[job_id]:
                feed.add(new)

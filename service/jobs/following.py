"""Everybody who follows a job: one look at the database serves all of a process's streams.

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
from service.jobs.queue import JobQueue, News

_log = logging.getLogger(__name__)

_POLL_S = 0.4
_KEPT = 50  # events of a job for streams that are a little behind
_RETRY_S = 10.0
_READERS = 2  # of history at once: many that come back together leave threads to others


class _Feed:
    """What is new of one job."""

    def __init__(self) -> None:
        self.streams = 0
        self.newest: int | None = None  # unknown until the first look
        self.ended = False  # and there is nothing after `newest`
        self.failed = False
        self.changed = asyncio.Event()
        self._kept: deque[JobEvent] = deque(maxlen=_KEPT)

    def take(self, news: News) -> None:
        """Take what a look has found, and wake whoever waits if that is anything."""
        if (news.newest, news.ended) == (self.newest, self.ended):
            return
        self._kept.extend(news.events)
        self.newest, self.ended = news.newest, news.ended
        self._wake()

    def fail(self) -> None:
        """Nobody looks any more: who waits must begin again."""
        self.failed = True
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, sequence: int) -> list[JobEvent] | None:
        """What followed an event; None where the database must be asked."""
        if self.newest is None:
            return None
        if sequence >= self.newest:
            return []
        if not self._kept or self._kept[0].sequence > sequence + 1:
            return None
        return [event for event in self._kept if event.sequence > sequence]


class Followers:
    """The streams of one process; for one event loop."""

    def __init__(
        self, queue: JobQueue, *, most: int, most_per_caller: int, poll_s: float = _POLL_S
    ) -> None:
        """Serve at most `most` streams at once; look at the database every `poll_s`."""
        self._queue = queue
        self._most = most
        self._most_per_caller = most_per_caller
        self._poll_s = poll_s
        self._seats: Counter[str] = Counter()
        self._feeds: dict[str, _Feed] = {}
        self._reading = asyncio.Semaphore(_READERS)
        self._polling: asyncio.Task[None] | None = None

    @contextmanager
    def seat(self, who: str) -> Iterator[None]:
        """A place for a stream of a caller's; raises `Unavailable` when all are taken."""
        if self._seats[who] >= self._most_per_caller or self._seats.total() >= self._most:
            raise Unavailable(
                "Too many streams of events are open. Close some, or ask GET /jobs/{job_id} now "
                "and then instead.",
                slug="too-many-streams",
                retry_after=_RETRY_S,
            )
        self._seats[who] += 1
        try:
            yield
        finally:
            self._seats[who] -= 1
            if not self._seats[who]:
                del self._seats[who]

    async def follow(self, job_id: str, after: int) -> AsyncGenerator[JobEvent, None]:
        """Events after one as they come, until one says that the job has ended.

        Whoever claims to have seen more than there is would wait for that one in vain, and hears
        the end all the same. Raises `CutOff` when nothing new can be found by a fault of ours.
        """
        feed = self._join(job_id)
        try:
            while True:
                # As they stand before the look: what comes meanwhile is found by the next one.
                ended, changed = feed.ended, feed.changed
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
        """Look for news for as long as anybody waits for some."""
        try:
            while self._feeds:
                await self._look()
                await asyncio.sleep(self._poll_s)
        finally:  # a fault of ours, or the end of the service
            for feed in self._feeds.values():
                feed.fail()
            self._feeds = {}

    async def _look(self) -> None:
        seen = {job_id: feed.newest for job_id, feed in self._feeds.items()}
        try:
            news = await asyncio.to_thread(self._queue.news, seen)
        except SQLAlchemyError as error:  # busy, or out of reach: the streams wait
            _log.warning("no news of jobs: %s", error)
            news = {}
        for job_id, new in news.items():
            feed = self._feeds.get(job_id)
            # One that was left and joined again meanwhile begins with its own first look.
            if feed is not None and feed.newest == seen[job_id]:
                feed.take(new)

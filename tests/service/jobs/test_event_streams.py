"""Streams of events that share the polling of the database."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from service.foundation.errors import CutOff, Unavailable
from service.jobs.event_streams import EventStreams
from service.jobs.events import Progress
from service.jobs.queue import JobQueue, Lease
from tests.service.jobs.workers import leased

POLL_S = 0.02


@pytest.fixture
def event_streams(queue: JobQueue) -> EventStreams:
    return EventStreams(queue, most=4, most_per_caller=2, poll_s=POLL_S)


def running(queue: JobQueue) -> Lease:
    queue.enqueue("fake", {})
    return leased(queue)


def report(queue: JobQueue, lease: Lease, count: int) -> None:
    for step in range(count):
        queue.record(lease, [Progress(event="progress", step=step, total_steps=count)])


async def sequences(event_streams: EventStreams, job_id: str, after: int = 0) -> list[int]:
    return [event.sequence async for event in event_streams.follow(job_id, after)]


def within(work: Coroutine[Any, Any, Any], seconds: float = 20.0) -> Any:
    async def limited() -> Any:
        return await asyncio.wait_for(work, seconds)

    return asyncio.run(limited())


def test_every_stream_has_every_event_after_its_own_last_one_once_and_in_order(
    event_streams: EventStreams, queue: JobQueue
) -> None:
    lease = running(queue)
    report(queue, lease, 3)

    async def follow() -> list[list[int]]:
        streams = [
            asyncio.create_task(sequences(event_streams, lease.job.id, after))
            for after in (0, 2, 4)
        ]
        for _ in range(4):  # while they listen, more at a time than a feed keeps
            await asyncio.to_thread(report, queue, lease, 20)
            streams.append(asyncio.create_task(sequences(event_streams, lease.job.id, 7)))
            await asyncio.sleep(POLL_S)
        await asyncio.to_thread(report, queue, lease, 120)
        await asyncio.to_thread(queue.succeed, lease, {})
        return await asyncio.gather(*streams)

    found = within(follow())
    last = queue.events(lease.job.id, after=200)[-1].sequence
    for after, seen in zip((0, 2, 4, 7, 7, 7, 7), found, strict=True):
        assert seen == list(range(after + 1, last + 1))


def test_a_stream_of_a_job_that_has_ended_ends(
    event_streams: EventStreams, queue: JobQueue
) -> None:
    lease = running(queue)
    queue.succeed(lease, {})
    assert within(sequences(event_streams, lease.job.id)) == [1, 2]
    assert within(sequences(event_streams, lease.job.id, after=2)) == []
    assert within(sequences(event_streams, lease.job.id, after=99)) == []


def test_many_streams_ask_the_database_no_more_often_than_one(
    event_streams: EventStreams, queue: JobQueue, engine: Engine
) -> None:
    lease = running(queue)
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))

    async def waiting(streams: int) -> float:
        """Statements, while nothing happens."""
        tasks = [
            asyncio.create_task(sequences(event_streams, lease.job.id)) for _ in range(streams)
        ]
        await asyncio.sleep(20 * POLL_S)  # all have read the history
        asked.clear()
        await asyncio.sleep(20 * POLL_S)
        statements = len(asked)
        await asyncio.to_thread(queue.record, lease, [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return statements

    one, many = within(waiting(1)), within(waiting(100))
    assert one > 0
    assert many <= 2 * one


def test_polling_ends_with_the_last_stream(
    event_streams: EventStreams, queue: JobQueue, engine: Engine
) -> None:
    lease = running(queue)
    asked: list[str] = []

    async def come_and_go() -> int:
        task = asyncio.create_task(sequences(event_streams, lease.job.id))
        await asyncio.sleep(5 * POLL_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(5 * POLL_S)
        event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
        await asyncio.sleep(10 * POLL_S)
        return len(asked)

    assert within(come_and_go()) == 0


def test_streams_wait_while_the_database_cannot_be_asked(
    event_streams: EventStreams, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = running(queue)
    news, failures = JobQueue.updates, 3

    def fail_at_first(self: JobQueue, seen: dict[str, int | None]) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise OperationalError("SELECT", {}, Exception("database is locked"))
        return news(self, seen)

    monkeypatch.setattr(JobQueue, "updates", fail_at_first)

    async def follow() -> list[int]:
        stream = asyncio.create_task(sequences(event_streams, lease.job.id))
        await asyncio.sleep(2 * POLL_S)
        await asyncio.to_thread(queue.succeed, lease, {})
        return await stream

    assert within(follow()) == [1, 2]
    assert failures == 0


def test_streams_are_cut_off_by_a_fault_in_polling_and_the_next_one_is_served(
    event_streams: EventStreams, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = running(queue)

    async def follow() -> list[int]:
        with monkeypatch.context() as broken:
            broken.setattr(JobQueue, "updates", lambda *_: 1 / 0)
            with pytest.raises(CutOff):
                await sequences(event_streams, lease.job.id)
        await asyncio.to_thread(queue.succeed, lease, {})
        return await sequences(event_streams, lease.job.id)

    assert within(follow()) == [1, 2]


def test_streams_are_bounded_for_each_caller_and_in_all(event_streams: EventStreams) -> None:
    with event_streams.slot("a"), event_streams.slot("a"):
        with pytest.raises(Unavailable), event_streams.slot("a"):
            pass
        with event_streams.slot("b"), event_streams.slot("b"), pytest.raises(Unavailable):
            event_streams.slot("c").__enter__()
        with event_streams.slot("c"):
            pass
    with event_streams.slot("a"):
        pass

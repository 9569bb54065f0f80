"""Who counts as dead, by a clock that the test holds; no wall clock is asked for anything."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from service.jobs.job import Status
from service.jobs.leases import LeaseObserver
from service.jobs.queue import Heartbeat, JobQueue
from service.storage.database import now
from tests.service.jobs.workers import leased

OpenQueue = Callable[..., JobQueue]


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observer(clock: Clock) -> LeaseObserver:
    return LeaseObserver(30.0, clock=clock)


def silent_for(
    observer: LeaseObserver, clock: Clock, seconds: float, *heartbeats: Heartbeat
) -> list[Heartbeat]:
    """Who is named while a watcher looks twice a second."""
    named = []
    for _ in range(int(seconds * 2)):
        clock.s += 0.5
        named += observer.expired(heartbeats)
    return named


def test_who_is_silent_for_as_long_as_a_lease_is_named_once(
    observer: LeaseObserver, clock: Clock
) -> None:
    heartbeat = Heartbeat("job", 1, 0)
    assert silent_for(observer, clock, 30, heartbeat) == []
    assert silent_for(observer, clock, 1, heartbeat) == [heartbeat]
    assert silent_for(observer, clock, 29, heartbeat) == []  # counted anew


def test_a_renewal_and_another_lease_begin_anew(observer: LeaseObserver, clock: Clock) -> None:
    assert silent_for(observer, clock, 29, Heartbeat("job", 1, 0)) == []
    assert silent_for(observer, clock, 29, Heartbeat("job", 1, 1)) == []
    assert silent_for(observer, clock, 29, Heartbeat("job", 2, 1)) == []


def test_time_in_which_the_watcher_itself_was_stopped_hardly_counts(
    observer: LeaseObserver, clock: Clock
) -> None:
    heartbeat = Heartbeat("job", 1, 0)
    assert silent_for(observer, clock, 20, heartbeat) == []
    clock.s += 3600
    assert silent_for(observer, clock, 6, heartbeat) == []
    assert silent_for(observer, clock, 4, heartbeat) == [heartbeat]


def test_a_process_never_declares_dead_what_it_runs_itself(
    observer: LeaseObserver, clock: Clock, queue: JobQueue
) -> None:
    queue.enqueue("fake", {})
    lease = leased(queue)
    with observer.holding(lease):
        assert silent_for(observer, clock, 300, *queue.heartbeats()) == []
    assert silent_for(observer, clock, 31, *queue.heartbeats()) == queue.heartbeats()


@pytest.mark.parametrize("step", [timedelta(days=1), timedelta(days=-1)])
def test_a_step_of_the_wall_clock_ends_no_lease_and_saves_none(
    open_queue: OpenQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    queue, observer = open_queue(), LeaseObserver(30.0, clock=clock)
    job = queue.enqueue("fake", {})
    lease = leased(queue)
    assert silent_for(observer, clock, 20, *queue.heartbeats()) == []
    today = now()
    monkeypatch.setattr("service.jobs.queue.now", lambda: today + step)
    assert silent_for(observer, clock, 9, *queue.heartbeats()) == []
    queue.heartbeat(lease)
    assert silent_for(observer, clock, 29, *queue.heartbeats()) == []
    (silent,) = silent_for(observer, clock, 2, *queue.heartbeats())
    queue.reclaim(silent)
    assert queue.get(job.id).status is Status.QUEUED

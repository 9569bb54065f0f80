"""Which leases have expired, by a clock that the test holds; the wall clock does not matter."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from service.jobs.job import Status
from service.jobs.leases import LeaseObserver
from service.jobs.queue import Heartbeat, JobQueue
from service.storage.database import now
from tests.service.clock import Clock
from tests.service.jobs.workers import leased

OpenQueue = Callable[..., JobQueue]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observer(clock: Clock) -> LeaseObserver:
    return LeaseObserver(30.0, clock=clock)


def expired_within(
    observer: LeaseObserver, clock: Clock, seconds: float, *heartbeats: Heartbeat
) -> list[Heartbeat]:
    """The heartbeats that an observer reports that looks twice a second."""
    named = []
    for _ in range(int(seconds * 2)):
        clock.now += 0.5
        named += observer.expired(heartbeats)
    return named


def test_a_lease_without_a_renewal_for_its_time_is_reported_once(
    observer: LeaseObserver, clock: Clock
) -> None:
    heartbeat = Heartbeat("job", 1, 0)
    assert expired_within(observer, clock, 30, heartbeat) == []
    assert expired_within(observer, clock, 1, heartbeat) == [heartbeat]
    assert expired_within(observer, clock, 29, heartbeat) == []  # counted anew


def test_a_renewal_and_another_lease_begin_anew(observer: LeaseObserver, clock: Clock) -> None:
    assert expired_within(observer, clock, 29, Heartbeat("job", 1, 0)) == []
    assert expired_within(observer, clock, 29, Heartbeat("job", 1, 1)) == []
    assert expired_within(observer, clock, 29, Heartbeat("job", 2, 1)) == []


def test_time_in_which_the_observer_itself_was_stopped_hardly_counts(
    observer: LeaseObserver, clock: Clock
) -> None:
    heartbeat = Heartbeat("job", 1, 0)
    assert expired_within(observer, clock, 20, heartbeat) == []
    clock.now += 3600
    assert expired_within(observer, clock, 6, heartbeat) == []
    assert expired_within(observer, clock, 4, heartbeat) == [heartbeat]


def test_a_process_never_reports_its_own_lease(
    observer: LeaseObserver, clock: Clock, queue: JobQueue
) -> None:
    queue.enqueue("fake", {})
    lease = leased(queue)
    with observer.holding(lease):
        assert expired_within(observer, clock, 300, *queue.heartbeats()) == []
    assert expired_within(observer, clock, 31, *queue.heartbeats()) == queue.heartbeats()


@pytest.mark.parametrize("step", [timedelta(days=1), timedelta(days=-1)])
def test_a_step_of_the_wall_clock_ends_no_lease_and_saves_none(
    open_queue: OpenQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    queue, observer = open_queue(), LeaseObserver(30.0, clock=clock)
    job = queue.enqueue("fake", {})
    lease = leased(queue)
    assert expired_within(observer, clock, 20, *queue.heartbeats()) == []
    today = now()
    monkeypatch.setattr("service.jobs.queue.now", lambda: today + step)
    assert expired_within(observer, clock, 9, *queue.heartbeats()) == []
    queue.heartbeat(lease)
    assert expired_within(observer, clock, 29, *queue.heartbeats()) == []
    (silent,) = expired_within(observer, clock, 2, *queue.heartbeats())
    queue.reclaim(silent)
    assert queue.get(job.id).status is Status.QUEUED

"""Who counts as dead, by a clock that the test holds; no wall clock is asked for anything."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from service.jobs.job import Status
from service.jobs.queue import Beat, JobQueue
from service.jobs.watch import Watch
from service.storage.database import now

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
def watch(clock: Clock) -> Watch:
    return Watch(30.0, clock=clock)


def silent_for(watch: Watch, clock: Clock, seconds: float, *beats: Beat) -> list[Beat]:
    """Who is named while a watcher looks twice a second."""
    named = []
    for _ in range(int(seconds * 2)):
        clock.s += 0.5
        named += watch.silent(beats)
    return named


def test_who_is_silent_for_as_long_as_a_lease_is_named_once(watch: Watch, clock: Clock) -> None:
    beat = Beat("job", 1, 0)
    assert silent_for(watch, clock, 30, beat) == []
    assert silent_for(watch, clock, 1, beat) == [beat]
    assert silent_for(watch, clock, 29, beat) == []  # counted anew


def test_a_renewal_and_another_lease_begin_anew(watch: Watch, clock: Clock) -> None:
    assert silent_for(watch, clock, 29, Beat("job", 1, 0)) == []
    assert silent_for(watch, clock, 29, Beat("job", 1, 1)) == []
    assert silent_for(watch, clock, 29, Beat("job", 2, 1)) == []


def test_time_in_which_the_watcher_itself_was_stopped_hardly_counts(
    watch: Watch, clock: Clock
) -> None:
    beat = Beat("job", 1, 0)
    assert silent_for(watch, clock, 20, beat) == []
    clock.s += 3600
    assert silent_for(watch, clock, 6, beat) == []
    assert silent_for(watch, clock, 4, beat) == [beat]


def test_a_process_never_declares_dead_what_it_runs_itself(
    watch: Watch, clock: Clock, open_queue: OpenQueue
) -> None:
    queue = open_queue()
    queue.enqueue("fake", {})
    lease = queue.lease()
    assert lease is not None
    with watch.running(lease):
        assert silent_for(watch, clock, 300, *queue.beats()) == []
    assert silent_for(watch, clock, 31, *queue.beats()) == queue.beats()


@pytest.mark.parametrize("step", [timedelta(days=1), timedelta(days=-1)])
def test_a_step_of_the_wall_clock_ends_no_lease_and_saves_none(
    open_queue: OpenQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    queue, watch = open_queue(), Watch(30.0, clock=clock)
    job = queue.enqueue("fake", {})
    lease = queue.lease()
    assert lease is not None
    assert silent_for(watch, clock, 20, *queue.beats()) == []
    today = now()
    monkeypatch.setattr("service.jobs.queue.now", lambda: today + step)
    assert silent_for(watch, clock, 9, *queue.beats()) == []
    queue.heartbeat(lease)
    assert silent_for(watch, clock, 29, *queue.beats()) == []
    (silent,) = silent_for(watch, clock, 2, *queue.beats())
    queue.take_back(silent)
    assert queue.get(job.id).status is Status.QUEUED

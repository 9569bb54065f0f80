import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from service.foundation.errors import Conflict, NotFound
from service.jobs.events import Evaluation, Progress, Start
from service.jobs.job import Job, Status
from service.jobs.queue import JobQueue, LeaseLost
from service.storage.database import now, open_database
from tests.service.jobs.workers import leased, write_lock
from tests.service.statements import plans

OpenQueue = Callable[..., JobQueue]


def statuses(queue: JobQueue, job: Job) -> list[str]:
    return [event.data["status"] for event in queue.events(job.id) if event.kind == "status"]


def test_jobs_are_leased_oldest_first_and_only_once(queue: JobQueue) -> None:
    first, second = queue.enqueue("fake", {}), queue.enqueue("fake", {})
    assert [leased(queue).job.id, leased(queue).job.id] == [first.id, second.id]
    assert queue.lease() is None


def test_many_workers_at_once_never_lease_one_job_twice(
    open_queue: OpenQueue, database_url: str
) -> None:
    jobs = [open_queue().enqueue("fake", {}).id for _ in range(12)]

    def drain(_: int) -> list[str]:
        engine = open_database(database_url)  # as a process of its own would
        queue = JobQueue(engine, lease_seconds=30, max_attempts=3)
        mine = []
        while lease := queue.lease():
            mine.append(lease.job.id)
        engine.dispose()
        return mine

    with ThreadPoolExecutor(4) as pool:
        taken = [job for mine in pool.map(drain, range(4)) for job in mine]
    assert sorted(taken) == sorted(jobs)


@pytest.mark.sqlite
def test_which_jobs_ended_long_ago_is_asked_by_id_and_only_of_some(
    queue: JobQueue, engine: Engine
) -> None:
    old, unasked, running = (queue.enqueue("fake", {}).id for _ in range(3))
    for job_id in (old, unasked):
        queue.cancel(job_id)
    names = [old, running, *(f"no-job-{number}" for number in range(1000))]
    with plans(engine) as found:
        assert queue.ended_before(now() + timedelta(seconds=1), names) == {old}
        assert queue.ended_before(now() - timedelta(days=1), names) == frozenset()
    for plan in found.values():
        assert plan == ["SEARCH job USING INDEX sqlite_autoindex_job_1 (id=?)"]


def test_progress_and_metrics_follow_the_events(queue: JobQueue) -> None:
    job = queue.enqueue("fake", {"a": 1})
    lease = leased(queue)
    queue.begin(lease)
    queue.record(lease, [Start(event="start", total_steps=40)])
    queue.record(
        lease,
        [
            Progress(event="progress", step=10, total_steps=40, eta_s=3, metrics={"loss": 2.0}),
            Evaluation(event="evaluation", metrics={"rank1": 0.5}),
        ],
    )
    seen = queue.get(job.id)
    assert (seen.progress.fraction, seen.progress.step, seen.progress.eta_s) == (0.25, 10, 3.0)
    assert seen.metrics == {"loss": 2.0, "rank1": 0.5}
    events = queue.events(job.id)
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert [event.kind for event in events] == [
        "status", "status", "start", "progress", "evaluation",
    ]  # fmt: skip
    assert [event.sequence for event in queue.events(job.id, after=3)] == [4, 5]


def test_a_finished_job_keeps_its_result_and_its_last_event_carries_it(
    queue: JobQueue,
) -> None:
    job = queue.enqueue("fake", {})
    done = queue.succeed(leased(queue), {"model": "m"})
    assert (done.status, done.result, done.progress.fraction) == ("succeeded", {"model": "m"}, 1.0)
    assert done.finished_at is not None
    last = queue.events(job.id)[-1]
    assert last.data["status"] == "succeeded"
    assert last.data["result"] == {"model": "m"}


def reclaim(queue: JobQueue) -> None:
    """What an observer does about every lease that has expired."""
    for heartbeat in queue.heartbeats():
        queue.reclaim(heartbeat)


def test_a_reclaim_that_waited_for_the_lock_leaves_leases_that_could_not_be_renewed(
    queue: JobQueue, engine: Engine
) -> None:
    queue.enqueue("fake", {})
    lease = leased(queue)
    (silent,) = queue.heartbeats()
    with ThreadPoolExecutor(1) as pool:
        with write_lock(engine):
            look = pool.submit(queue.reclaim, silent)
            time.sleep(1.3)
        look.result(10)
    queue.heartbeat(lease)  # its runner's turn
    queue.reclaim(silent)  # who was heard of meanwhile lives
    assert queue.get(lease.job.id).status is Status.RUNNING
    reclaim(queue)
    assert leased(queue).job.id == lease.job.id


def test_a_job_that_was_taken_back_is_queued_again_and_its_old_worker_can_write_nothing(
    queue: JobQueue,
) -> None:
    job = queue.enqueue("fake", {})
    old = leased(queue)
    queue.begin(old)
    reclaim(queue)
    writes: list[Callable[[], object]] = [
        lambda: queue.begin(old),
        lambda: queue.heartbeat(old),
        lambda: queue.status(old),
        lambda: queue.record(old, [Start(event="start", total_steps=1)]),
        lambda: queue.succeed(old, {}),
        lambda: queue.fail(old, "why"),
        lambda: queue.stopped(old),
        lambda: queue.retry(old, "why"),
        lambda: queue.release(old),
        lambda: queue.lease_of(job.id, old.number),
    ]

    def require_nothing_written() -> None:
        before = queue.get(job.id), queue.events(job.id)
        for write in writes:
            with pytest.raises(LeaseLost):
                write()
        assert (queue.get(job.id), queue.events(job.id)) == before

    require_nothing_written()  # while nobody has the job
    new = leased(queue)
    require_nothing_written()  # while another worker has it
    assert queue.begin(new).attempts == 2
    assert queue.succeed(new, {}).status is Status.SUCCEEDED
    assert statuses(queue, job) == ["queued", "running", "queued", "running", "succeeded"]


def test_whatever_renews_a_lease_is_a_heartbeat(queue: JobQueue) -> None:
    queue.enqueue("fake", {})
    lease = leased(queue)
    seen = queue.heartbeats()
    for renew in (
        lambda: queue.begin(lease),
        lambda: queue.heartbeat(lease),
        lambda: queue.record(lease, [Start(event="start", total_steps=1)]),
    ):
        renew()
        assert queue.heartbeats() != seen
        for heartbeat in seen:
            queue.reclaim(heartbeat)
        seen = queue.heartbeats()
    assert queue.status(lease) is Status.RUNNING


@pytest.mark.parametrize("begins", [True, False])
def test_only_attempts_that_began_count_when_workers_keep_disappearing(
    open_queue: OpenQueue, begins: bool
) -> None:
    queue = open_queue(max_attempts=2)
    job = queue.enqueue("fake", {}, claim="model:a")
    for _ in range(2 if begins else 5):
        lease = leased(queue)
        if begins:
            queue.begin(lease)
        reclaim(queue)
    seen = queue.get(job.id)
    assert seen.status is (Status.FAILED if begins else Status.QUEUED)
    assert seen.attempts == (2 if begins else 0)
    if begins:
        assert seen.error == "gave up after 2 attempts: the worker that ran it disappeared"
        queue.enqueue("fake", {}, claim="model:a")  # and holds its claim no longer


def test_an_attempt_that_cannot_begin_counts_or_it_would_be_made_for_ever(
    open_queue: OpenQueue,
) -> None:
    queue = open_queue(max_attempts=2)
    job = queue.enqueue("fake", {})
    for _ in range(2):
        queue.retry(leased(queue), "no folder")
    assert queue.get(job.id).error == "gave up after 2 attempts: no folder"


def test_a_released_job_does_not_lose_an_attempt(open_queue: OpenQueue) -> None:
    queue = open_queue(max_attempts=1)
    job = queue.enqueue("fake", {})
    for _ in range(3):
        lease = leased(queue)
        queue.begin(lease)
        assert queue.release(lease).status is Status.QUEUED
    assert queue.get(job.id).attempts == 0


def test_cancelling_a_queued_job_ends_it_at_once(queue: JobQueue) -> None:
    job = queue.enqueue("fake", {})
    assert queue.cancel(job.id).status is Status.CANCELLED
    assert queue.cancel(job.id).status is Status.CANCELLED
    assert queue.lease() is None


def test_cancelling_a_running_job_is_told_to_its_worker(queue: JobQueue) -> None:
    job = queue.enqueue("fake", {})
    lease = leased(queue)
    assert queue.cancel(job.id).status is Status.CANCELLING
    assert queue.cancel(job.id).status is Status.CANCELLING
    assert queue.status(lease) is Status.CANCELLING
    assert queue.stopped(lease).status is Status.CANCELLED


@pytest.mark.parametrize("end", ["retry", "release", "disappear"])
def test_a_job_being_cancelled_is_never_queued_again(queue: JobQueue, end: str) -> None:
    job = queue.enqueue("fake", {})
    lease = leased(queue)
    queue.cancel(job.id)
    if end == "retry":
        queue.retry(lease, "crash")
    elif end == "release":
        queue.release(lease)
    else:
        reclaim(queue)
    assert queue.lease() is None
    assert queue.get(job.id).status is Status.CANCELLED


def test_cancelling_what_has_ended_is_a_conflict(queue: JobQueue) -> None:
    job = queue.enqueue("fake", {})
    queue.fail(leased(queue), "because")
    with pytest.raises(Conflict, match="already ended"):
        queue.cancel(job.id)


def test_two_unfinished_jobs_cannot_claim_one_thing(queue: JobQueue) -> None:
    queue.enqueue("fake", {}, claim="model:a")
    with pytest.raises(Conflict, match="model:a"):
        queue.enqueue("fake", {}, claim="model:a")
    assert len(queue.page(status=None, limit=10, cursor=None).items) == 1
    queue.succeed(leased(queue), {})
    queue.enqueue("fake", {}, claim="model:a")


def test_pages_go_newest_first_and_never_repeat(queue: JobQueue) -> None:
    ids = [queue.enqueue("fake", {}).id for _ in range(5)]
    queue.cancel(ids[0])
    page = queue.page(status=None, limit=2, cursor=None)
    seen = [job.id for job in page.items]
    queue.enqueue("fake", {})  # a newer one does not shift the pages
    while page.next_key:
        page = queue.page(status=None, limit=2, cursor=page.next_key)
        seen += [job.id for job in page.items]
    assert seen == ids[::-1]
    cancelled = queue.page(status=Status.CANCELLED, limit=10, cursor=None)
    assert [job.id for job in cancelled.items] == [ids[0]]


def test_an_unknown_job_is_not_found(open_queue: OpenQueue) -> None:
    with pytest.raises(NotFound):
        open_queue().get("nope")

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from service.database import now, open_database, writing
from service.errors import Conflict, NotFound
from service.jobs.events import Evaluation, Progress, Start
from service.jobs.job import Job, Status
from service.jobs.queue import JobQueue, Lease, LeaseLost

OpenQueue = Callable[..., JobQueue]


def leased(queue: JobQueue) -> Lease:
    lease = queue.lease()
    assert lease is not None
    return lease


def statuses(queue: JobQueue, job: Job) -> list[str]:
    return [event.data["status"] for event in queue.events(job.id) if event.kind == "status"]


def test_jobs_are_leased_oldest_first_and_only_once(open_queue: OpenQueue) -> None:
    queue = open_queue()
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


def test_progress_and_metrics_follow_the_events(open_queue: OpenQueue) -> None:
    queue = open_queue()
    job = queue.enqueue("fake", {"a": 1})
    lease = leased(queue)
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
    open_queue: OpenQueue,
) -> None:
    queue = open_queue()
    job = queue.enqueue("fake", {})
    done = queue.succeed(leased(queue), {"model": "m"})
    assert (done.status, done.result, done.progress.fraction) == ("succeeded", {"model": "m"}, 1.0)
    assert done.finished_at is not None
    last = queue.events(job.id)[-1]
    assert last.data["status"] == "succeeded"
    assert last.data["result"] == {"model": "m"}


def test_a_look_that_waited_for_the_lock_leaves_leases_that_could_not_be_renewed(
    open_queue: OpenQueue, engine: Engine
) -> None:
    queue = open_queue(lease_seconds=0.01)
    queue.enqueue("fake", {})
    lease = leased(queue)
    time.sleep(0.05)
    with ThreadPoolExecutor(1) as pool, writing(engine).connect() as connection:
        with connection.begin():
            connection.exec_driver_sql("SELECT 1")
            look = pool.submit(queue.lease)
            time.sleep(1.3)
        assert look.result(10) is None
    queue.heartbeat(lease)  # its runner's turn
    time.sleep(0.05)
    assert leased(queue).job.id == lease.job.id  # who is silent then is dead


def test_an_expired_lease_queues_the_job_again_and_fences_the_old_worker(
    open_queue: OpenQueue,
) -> None:
    queue = open_queue(lease_seconds=0.05)
    job = queue.enqueue("fake", {})
    old = leased(queue)
    time.sleep(0.06)
    new = leased(queue)
    assert new.job.id == job.id
    assert new.job.attempts == 2
    for write in (
        lambda: queue.heartbeat(old),
        lambda: queue.status(old),
        lambda: queue.record(old, []),
        lambda: queue.succeed(old, {}),
        lambda: queue.fail(old, "why"),
        lambda: queue.release(old),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert queue.succeed(new, {}).status is Status.SUCCEEDED
    assert statuses(queue, job) == ["queued", "running", "queued", "running", "succeeded"]


def test_a_lease_given_before_the_clock_was_set_back_is_none(
    open_queue: OpenQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = open_queue(lease_seconds=5)
    job = queue.enqueue("fake", {})
    today = now()
    for back, held in ((timedelta(seconds=4), True), (timedelta(days=1), False)):
        with monkeypatch.context() as patch:
            patch.setattr("service.jobs.queue.now", lambda: today)
            queue.lease()
            patch.setattr("service.jobs.queue.now", lambda back=back: today - back)
            found = queue.lease()
        assert (found is None) is held
    assert found is not None
    assert found.job.id == job.id


def test_a_heartbeat_keeps_the_lease(open_queue: OpenQueue) -> None:
    queue = open_queue(lease_seconds=0.2)
    queue.enqueue("fake", {})
    lease = leased(queue)
    for _ in range(4):
        time.sleep(0.08)
        queue.heartbeat(lease)
        assert queue.lease() is None


def test_a_job_whose_workers_keep_disappearing_fails_with_a_reason(open_queue: OpenQueue) -> None:
    queue = open_queue(lease_seconds=0.02, max_attempts=2)
    job = queue.enqueue("fake", {}, claim="model:a")
    for _ in range(2):
        leased(queue)
        time.sleep(0.03)
    assert queue.lease() is None
    seen = queue.get(job.id)
    assert seen.status is Status.FAILED
    assert seen.error == "gave up after 2 attempts: the worker that ran it disappeared"
    queue.enqueue("fake", {}, claim="model:a")  # and holds its claim no longer


def test_a_released_job_does_not_lose_an_attempt(open_queue: OpenQueue) -> None:
    queue = open_queue(max_attempts=1)
    job = queue.enqueue("fake", {})
    for _ in range(3):
        assert queue.release(leased(queue)).status is Status.QUEUED
    assert queue.get(job.id).attempts == 0


def test_cancelling_a_queued_job_ends_it_at_once(open_queue: OpenQueue) -> None:
    queue = open_queue()
    job = queue.enqueue("fake", {})
    assert queue.cancel(job.id).status is Status.CANCELLED
    assert queue.cancel(job.id).status is Status.CANCELLED
    assert queue.lease() is None


def test_cancelling_a_running_job_is_told_to_its_worker(open_queue: OpenQueue) -> None:
    queue = open_queue()
    job = queue.enqueue("fake", {})
    lease = leased(queue)
    assert queue.cancel(job.id).status is Status.CANCELLING
    assert queue.cancel(job.id).status is Status.CANCELLING
    assert queue.status(lease) is Status.CANCELLING
    assert queue.stopped(lease).status is Status.CANCELLED


@pytest.mark.parametrize("end", ["retry", "release", "disappear"])
def test_a_job_being_cancelled_is_never_queued_again(open_queue: OpenQueue, end: str) -> None:
    queue = open_queue(lease_seconds=0.05 if end == "disappear" else 30.0)
    job = queue.enqueue("fake", {})
    lease = leased(queue)
    queue.cancel(job.id)
    if end == "retry":
        queue.retry(lease, "crash")
    elif end == "release":
        queue.release(lease)
    else:
        time.sleep(0.06)
    assert queue.lease() is None
    assert queue.get(job.id).status is Status.CANCELLED


def test_cancelling_what_has_ended_is_a_conflict(open_queue: OpenQueue) -> None:
    queue = open_queue()
    job = queue.enqueue("fake", {})
    queue.fail(leased(queue), "because")
    with pytest.raises(Conflict, match="already ended"):
        queue.cancel(job.id)


def test_two_unfinished_jobs_cannot_claim_one_thing(open_queue: OpenQueue) -> None:
    queue = open_queue()
    queue.enqueue("fake", {}, claim="model:a")
    with pytest.raises(Conflict, match="model:a"):
        queue.enqueue("fake", {}, claim="model:a")
    assert len(queue.page(status=None, limit=10, cursor=None).items) == 1
    queue.succeed(leased(queue), {})
    queue.enqueue("fake", {}, claim="model:a")


def test_pages_go_newest_first_and_never_repeat(open_queue: OpenQueue) -> None:
    queue = open_queue()
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


def test_an_unknown_job_is_not_found(open_queue: OpenQueue, engine: Engine) -> None:
    with pytest.raises(NotFound):
        open_queue().get("nope")

"""A distillation's steps and its end, with a quick stand-in for the training program."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from service.foundation.settings import Settings
from service.gallery.store import GalleryStore
from service.jobs.job import Job, Status
from service.jobs.queue import ERASED, JobQueue, Lease
from service.jobs.scratch import remove_scratch
from service.jobs.worker import Worker
from service.privacy.erasure_transactions import erase_subject
from service.serving.lineage import TrainedSubjectRow, TrainingRecord
from service.serving.model_files import ModelRow
from service.serving.registry import ModelRegistry, Source
from tests.e2e.deployment import until
from tests.service.jobs.galleries import enrol
from tests.service.jobs.workers import worker_of

REQUEST = {
    "recipe": "demo",
    "name": "mine",
    "dataset": {"gallery": "default"},
    "teachers": ["default"],
}


class Killed(BaseException):
    """Ends a worker as kill -9 does: nothing is tidied up."""


class KilledBeforeTheCommit(JobQueue):
    """Dies in the transaction that ends the job, with its model moved in."""

    def succeed(self, lease: Lease, result: Any, in_transaction: Any = None) -> Job:
        def settle(session: Session) -> None:
            in_transaction(session)
            raise Killed

        return super().succeed(lease, result, settle)


class Overtaken(JobQueue):
    """Is only paused, when everything is made, until another worker has taken the job over."""

    def _overtake(self) -> None:
        for heartbeat in self.heartbeats():
            self.reclaim(heartbeat)
        assert self.lease() is not None


class OvertakenBeforeTheRecord(Overtaken):
    def write(self, lease: Lease, work: Callable[[Session], None]) -> None:
        self._overtake()
        super().write(lease, work)


class OvertakenBeforeTheEnd(Overtaken):
    def succeed(self, *arguments: Any, **named: Any) -> Job:
        self._overtake()
        return super().succeed(*arguments, **named)


@pytest.fixture(autouse=True)
def filled(store: GalleryStore, quick_training: None) -> None:
    enrol(store, "default", "a", 1)


@pytest.fixture
def worker(settings: Settings, engine: Engine) -> Callable[..., Worker]:
    def build(kind: type[JobQueue] = JobQueue) -> Worker:
        queue = kind(engine, lease_seconds=1.0, max_attempts=3)
        return worker_of(settings, engine, queue=queue)

    return build


def test_a_distillation_registers_what_was_exported_and_keeps_only_its_logs(
    settings: Settings, engine: Engine, worker: Callable[..., Worker], queue: JobQueue
) -> None:
    job = queue.enqueue("distill", REQUEST)
    folder = settings.jobs_dir / job.id
    (folder / "run" / "tensorboard").mkdir(parents=True)
    (folder / "run" / "state.pt").write_text("1")
    assert worker().run_one()
    job = queue.get(job.id)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    model = ModelRegistry(settings, engine).show("mine")
    assert (model.source, model.job_id) == (Source.TRAINED, job.id)
    assert job.result == {"model": "mine", "digest": model.digest}
    steps = [line for line in (folder / "log.txt").read_text().splitlines() if line[:2] == "=="]
    assert [step[3:].split(",")[0] for step in steps] == [
        "exporting the gallery", "packing the gallery", "training", "export",
    ]  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {"log.txt", "lock", "run"}
    left = {path.name for path in (folder / "run").iterdir()}
    assert "tensorboard" in left
    assert not left & {"state.pt", "checkpoint"}


def test_whom_a_model_learned_from_is_kept_until_a_receipt_needs_it(
    settings: Settings, engine: Engine, worker: Callable[..., Worker], queue: JobQueue
) -> None:
    queue.enqueue("distill", REQUEST)
    assert worker().run_one()
    queue.enqueue("distill", {**REQUEST, "name": "heir", "dataset": "pack", "student": "mine"})
    pack = settings.datasets_dir / "pack"
    pack.mkdir(parents=True)
    (pack / "index.json").write_text("{}")
    assert worker().run_one()
    models_of = TrainingRecord.of(settings.data_dir).models
    assert erase_subject(engine, "default", "a", models_of).models == ("heir", "mine")
    for _ in range(2):
        enrol(GalleryStore(engine), "default", "b", 1)
        assert erase_subject(engine, "default", "b", models_of).models == ()


def test_whom_a_model_learned_from_is_known_though_its_worker_died_as_it_was_moved(
    settings: Settings, engine: Engine, worker: Callable[..., Worker]
) -> None:
    JobQueue.of(engine, settings).enqueue("distill", REQUEST)
    with pytest.raises(Killed):
        worker(KilledBeforeTheCommit).run_one()
    assert (settings.models_dir / "mine").exists()
    models_of = TrainingRecord.of(settings.data_dir).models
    assert erase_subject(engine, "default", "a", models_of).models == ("mine",)


def test_an_erasure_stops_the_training_on_the_erased(
    settings: Settings, engine: Engine, worker: Callable[..., Worker], queue: JobQueue
) -> None:
    job = queue.enqueue("distill", {**REQUEST, "overrides": {"steps": 1000, "seconds": 0.05}})
    running = threading.Thread(target=worker().run_one)
    running.start()
    until(lambda: queue.get(job.id).progress.step > 2, "the training has begun")
    folder = settings.jobs_dir / job.id
    receipt = erase_subject(engine, "default", "a")
    remove_scratch(settings.jobs_dir, receipt.jobs)
    assert not (folder / "scratch").exists()
    running.join(20)
    assert receipt.jobs == (job.id,)
    ended = queue.get(job.id)
    assert (ended.status, ended.error) == (Status.CANCELLED, ERASED)
    assert not (folder / "scratch").exists()
    assert not (settings.models_dir / "mine").exists()


@pytest.mark.parametrize("moment", ["before its people are recorded", "after it"])
def test_no_model_comes_of_walks_that_were_erased_when_the_training_had_just_ended(
    settings: Settings, engine: Engine, worker: Callable[..., Worker], moment: str, queue: JobQueue
) -> None:
    class Erasing(JobQueue):
        def get(self, job_id: str) -> Job:  # what the worker asks before it makes the model known
            if moment == "before its people are recorded":
                erase_subject(engine, "default", "a")
            return super().get(job_id)

        def succeed(self, *arguments: Any, **named: Any) -> Job:
            if moment == "after it":
                erase_subject(engine, "default", "a")
            return super().succeed(*arguments, **named)

    job = queue.enqueue("distill", REQUEST)
    assert worker(Erasing).run_one()
    ended = queue.get(job.id)
    assert (ended.status, ended.error) == (Status.FAILED, ERASED)
    assert not (settings.models_dir / "mine").exists()
    assert ModelRegistry(settings, engine).all() != []
    with Session(engine) as session:
        recorded = set(session.scalars(select(TrainedSubjectRow.model)))
    # It may have been there for a moment, so receipts name it like any other that was removed.
    assert recorded == ({"mine"} if moment == "after it" else set())


def test_a_worker_killed_after_it_moved_the_model_is_followed_by_one_that_ends_the_job(
    settings: Settings, engine: Engine, worker: Callable[..., Worker]
) -> None:
    queue = JobQueue(engine, lease_seconds=1.0, max_attempts=3)
    job = queue.enqueue("distill", REQUEST)
    with pytest.raises(Killed):
        worker(KilledBeforeTheCommit).run_one()
    assert (settings.models_dir / "mine" / "card.json").is_file()
    # Packed again, the gallery would be another dataset, and the run in the folder another run's.
    enrol(GalleryStore(engine), "default", "b", 1)
    until(worker().run_one, "its silence was noticed")
    job = queue.get(job.id)
    assert (job.status, job.attempts, job.error) == (Status.SUCCEEDED, 2, None)
    assert ModelRegistry(settings, engine).show("mine").job_id == job.id
    log = (settings.jobs_dir / job.id / "log.txt").read_text()
    assert log.count("== exporting the gallery") == 1
    assert not (settings.jobs_dir / job.id / "scratch").exists()


@pytest.mark.parametrize("kind", [OvertakenBeforeTheRecord, OvertakenBeforeTheEnd])
def test_a_worker_that_was_only_paused_registers_no_model_of_a_job_that_was_taken_over(
    settings: Settings, engine: Engine, worker: Callable[..., Worker], kind: type[JobQueue]
) -> None:
    queue = JobQueue(engine, lease_seconds=1.0, max_attempts=3)
    job = queue.enqueue("distill", REQUEST)
    assert worker(kind).run_one()
    assert queue.get(job.id).status is Status.RUNNING  # the other worker's, which does nothing yet
    assert not (settings.models_dir / "mine").exists()
    with Session(engine) as session:
        assert session.get(ModelRow, "mine") is None
        recorded = set(session.scalars(select(TrainedSubjectRow.model)))
    assert recorded == (set() if kind is OvertakenBeforeTheRecord else {"mine"})
    until(worker().run_one, "the other worker is silent, too")
    assert queue.get(job.id).status is Status.SUCCEEDED
    assert [path.name for path in settings.models_dir.iterdir()] == ["mine"]

"""A distillation's steps and its end, with a quick stand-in for the training program."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.database import migrate, open_database
from service.gallery.store import GalleryStore
from service.jobs.job import Job, Status
from service.jobs.queue import JobQueue
from service.jobs.types import job_types
from service.jobs.worker import Worker
from service.model_registry import ModelRegistry, Source
from service.settings import Settings
from tests.e2e.deployment import QUICK_TRAINING, until
from tests.service.jobs.galleries import enrol

REQUEST = {
    "recipe": "demo",
    "name": "mine",
    "dataset": {"gallery": "default"},
    "teachers": ["default"],
}


class Killed(BaseException):
    """Ends a worker as kill -9 does: nothing is tidied up."""


class KilledBeforeTheCommit(JobQueue):
    def succeed(self, *_: object, **__: object) -> Job:
        raise Killed


@pytest.fixture
def settings(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(QUICK_TRAINING), *filter(None, inherited)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.chdir(tmp_path)  # so that `-m training` does not find the repository's first
    return Settings(data_dir=tmp_path / "data", shipped_models_dir=models)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    settings.data_dir.mkdir()
    engine = open_database(settings.resolved_database_url)
    migrate(engine)
    store = GalleryStore(engine)
    store.ensure("default")
    enrol(store, "default", "a", 1)
    yield engine
    engine.dispose()


@pytest.fixture
def worker(settings: Settings, engine: Engine) -> Callable[..., Worker]:
    def build(kind: type[JobQueue] = JobQueue) -> Worker:
        return Worker(
            kind(engine, lease_seconds=1.0, max_attempts=3),
            job_types(settings, engine),
            folders=settings.jobs_dir,
            grace_s=0.5,
            poll_s=0.05,
        )

    return build


def test_a_distillation_registers_what_was_exported_and_keeps_only_its_logs(
    settings: Settings, engine: Engine, worker: Callable[..., Worker]
) -> None:
    queue = JobQueue(engine, lease_seconds=30.0, max_attempts=3)
    job = queue.enqueue("distill", REQUEST)
    folder = settings.jobs_dir / job.id
    (folder / "run" / "tensorboard").mkdir(parents=True)
    (folder / "run" / "state.pt").write_bytes(b"every weight thrice")
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
    until(worker().run_one, "the lease ran out")
    job = queue.get(job.id)
    assert (job.status, job.attempts, job.error) == (Status.SUCCEEDED, 2, None)
    assert ModelRegistry(settings, engine).show("mine").job_id == job.id
    log = (settings.jobs_dir / job.id / "log.txt").read_text()
    assert log.count("== exporting the gallery") == 1
    assert not (settings.jobs_dir / job.id / "scratch").exists()

"""An activation killed at any step: the old model serves, and what is done is not redone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from models.comparison import paired as comparison
from service.foundation.settings import Settings
from service.gallery.active_model import models_of
from service.gallery.store import GalleryStore
from service.gallery.tables import EmbeddingRow
from service.job_types import activation
from service.job_types.activation import Activation, CannotActivate
from service.job_types.calibration import Measured, measure
from service.jobs.job import Job, Status
from service.jobs.queue import JobQueue, Lease
from service.privacy.erasure_transactions import erase_gallery
from service.serving.model_files import read_card
from service.serving.registry import find_model, resolve
from service.serving.thresholds import keep
from service.storage.database import writing
from tests.e2e.deployment import Deployment, until
from tests.service.conftest import save_tiny_model
from tests.service.jobs.galleries import enrol_embeddings
from tests.service.jobs.workers import leased

SEQUENCES = 80  # more than two pieces


def silhouettes(number: int, frames: int = 2) -> NDArray[np.uint8]:
    generator = np.random.default_rng(number)
    return np.where(generator.random((frames, 64, 64)) < 0.5, np.uint8(255), np.uint8(0))


def fill(
    engine: Engine, settings: Settings, count: int, *, first: int = 0, frames: int = 2
) -> None:
    """Enrol with embeddings of the deployment's own model, two sequences a subject."""
    for number in range(first, first + count, 2):
        pair = (number, number + 1)
        enrol_embeddings(
            engine,
            settings,
            f"p{number}",
            [np.random.default_rng(one).normal(size=(4, 16)).astype(np.float32) for one in pair],
            silhouettes=[silhouettes(one, frames) for one in pair],
        )


@pytest.fixture(autouse=True)
def filled(engine: Engine, settings: Settings) -> None:
    fill(engine, settings, SEQUENCES)


def begin(queue: JobQueue) -> Lease:
    queue.enqueue("activate", {"name": "other", "gallery": "default", "instead_of": None})
    return leased(queue)


def run(settings: Settings, engine: Engine, lease: Lease) -> None:
    queue = JobQueue.of(engine, settings)
    Activation(settings, engine, queue, lambda _done, _total: None, lambda _: None).run(
        lease.job.id, lease.number
    )


def active(engine: Engine) -> str:
    pin = models_of(engine, "default").active
    return "default" if pin is None else pin.name


class Killed(BaseException):
    """Ends the command as kill -9 does: nothing is tidied up."""


def kill_in_the_second_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = GalleryStore.add_embeddings
    kept: list[str] = []

    def add(self: GalleryStore, digest: str, made: Any) -> None:
        if kept:
            raise Killed
        kept.append(digest)
        keep(self, digest, made)

    monkeypatch.setattr(GalleryStore, "add_embeddings", add)


def kill_while_comparing(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(activation, "compare_rank1", compare)


def kill_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def queue_if_stale(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(activation, "queue_if_stale", queue_if_stale)


def kill_after_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def prune(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(activation, "prune", prune)


@pytest.mark.parametrize(
    ("kill", "kept"),
    [
        (kill_in_the_second_piece, 32),
        (kill_while_comparing, SEQUENCES),
        (kill_before_the_commit, SEQUENCES),
    ],
)
def test_killed_before_the_swap_the_old_model_stays_and_the_job_resumes_with_what_is_missing(
    settings: Settings,
    engine: Engine,
    queue: JobQueue,
    kill: Callable[[pytest.MonkeyPatch], None],
    kept: int,
) -> None:
    lease = begin(queue)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            run(settings, engine, lease)
    assert active(engine) == "default"
    assert queue.get(lease.job.id).status is Status.RUNNING
    digest = find_model(settings, engine, "other").digest
    assert GalleryStore(engine).count_without(digest) == SEQUENCES - kept

    queue.retry(lease, "its lease ran out")
    again = leased(queue)
    run(settings, engine, again)
    job = queue.get(lease.job.id)
    assert (job.status, active(engine)) == (Status.SUCCEEDED, "other")
    assert job.result is not None
    assert (job.result["sequences"], job.result["embedded"]) == (SEQUENCES, SEQUENCES - kept)
    assert GalleryStore(engine).count_without(digest) == 0


def test_killed_after_the_swap_the_job_has_succeeded_with_it(
    settings: Settings, engine: Engine, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = begin(queue)
    kill_after_the_commit(monkeypatch)
    with pytest.raises(Killed):
        run(settings, engine, lease)
    assert (queue.get(lease.job.id).status, active(engine)) == (Status.SUCCEEDED, "other")
    assert queue.lease() is None


@pytest.mark.parametrize("late", [4, 40])
def test_what_is_enrolled_before_the_swap_is_embedded_with_it(
    settings: Settings,
    engine: Engine,
    queue: JobQueue,
    monkeypatch: pytest.MonkeyPatch,
    late: int,
) -> None:
    swaps: list[str] = []
    succeed = JobQueue.succeed

    def enrol_and_succeed(self: JobQueue, *args: Any, **kwargs: Any) -> Job:
        if not swaps:
            fill(engine, settings, late, first=1000)
        swaps.append("tried")
        return succeed(self, *args, **kwargs)

    monkeypatch.setattr(JobQueue, "succeed", enrol_and_succeed)
    lease = begin(queue)
    run(settings, engine, lease)
    assert len(swaps) == (1 if late == 4 else 2)
    digest = find_model(settings, engine, "other").digest
    assert GalleryStore(engine).count_without(digest) == 0
    result = queue.get(lease.job.id).result
    assert result is not None
    assert result["sequences"] == SEQUENCES + late


def between_embedding_and_swap(
    monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]
) -> None:
    """Something that others do while the models are compared."""
    compare = comparison.compare_rank1

    def compare_and(*args: Any) -> Any:
        meanwhile()
        return compare(*args)

    monkeypatch.setattr(activation, "compare_rank1", compare_and)


def test_a_cancelled_activation_does_not_swap(
    settings: Settings, engine: Engine, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = begin(queue)
    between_embedding_and_swap(monkeypatch, lambda: queue.cancel(lease.job.id))
    with pytest.raises(CannotActivate, match="cancelled"):
        run(settings, engine, lease)
    assert active(engine) == "default"
    assert queue.get(lease.job.id).status is Status.CANCELLING


def test_an_activation_whose_worker_was_replaced_does_not_swap(
    settings: Settings, engine: Engine, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = begin(queue)

    def take_over() -> None:
        queue.retry(lease, "presumed dead")
        queue.lease()

    between_embedding_and_swap(monkeypatch, take_over)
    with pytest.raises(CannotActivate, match="another worker"):
        run(settings, engine, lease)
    assert active(engine) == "default"


def test_an_activation_gives_way_to_a_swap_under_its_feet(
    settings: Settings, engine: Engine, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(queue)
    run(settings, engine, first)
    queue.enqueue("activate", {"name": "default", "gallery": "default", "instead_of": None})
    lease = leased(queue)
    between_embedding_and_swap(
        monkeypatch,
        lambda: activation.roll_back(settings, engine, "default", lambda _session, _job: None),
    )
    with pytest.raises(CannotActivate, match="another model meanwhile"):
        run(settings, engine, lease)
    row = models_of(engine, "default")
    assert (active(engine), row.previous and row.previous.name) == ("default", "other")


def test_an_activation_gated_against_another_model_is_refused(
    settings: Settings, engine: Engine, queue: JobQueue
) -> None:
    queue.enqueue("activate", {"name": "other", "gallery": "default", "instead_of": "x" * 64})
    lease = leased(queue)
    with pytest.raises(CannotActivate, match="another model now"):
        run(settings, engine, lease)
    assert active(engine) == "default"


def test_an_activation_of_a_gallery_that_is_erased_meanwhile_fails_and_its_successor_gets_nothing(
    settings: Settings, engine: Engine, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = begin(queue)
    between_embedding_and_swap(monkeypatch, lambda: erase_gallery(engine, "default", keep=True))
    with pytest.raises(CannotActivate, match="erased"):
        run(settings, engine, lease)
    assert active(engine) == "default"


def test_only_embeddings_of_the_two_last_models_are_kept(
    settings: Settings, engine: Engine, queue: JobQueue
) -> None:
    digest = save_tiny_model(settings.models_dir / "third", seed=3).digest
    other = find_model(settings, engine, "other").digest
    run(settings, engine, begin(queue))
    queue.enqueue("activate", {"name": "third", "gallery": "default", "instead_of": None})
    lease = leased(queue)
    run(settings, engine, lease)
    with Session(engine) as session:
        query = select(EmbeddingRow.digest, func.count()).group_by(EmbeddingRow.digest)
        kept = {(name, count) for name, count in session.execute(query)}
    assert kept == {(digest, SEQUENCES), (other, SEQUENCES)}


def test_who_is_enrolled_while_the_models_are_compared_costs_no_gallery_its_calibration(
    engine: Engine, settings: Settings, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibration_of(name: str) -> Measured:
        model = read_card(resolve(settings, engine, name))
        return measure(engine, "default", model, 0.3)  # observed: no shape is asked of the tail

    with Session(writing(engine)) as session, session.begin():
        measured = calibration_of("default")
        keep(session, measured.gallery_id, measured.operating_point)
    compare = comparison.compare_rank1

    def enrol_meanwhile(*sides: Any) -> comparison.PairedRank1 | None:
        fill(engine, settings, 4, first=SEQUENCES)
        return compare(*sides)

    monkeypatch.setattr(activation, "compare_rank1", enrol_meanwhile)
    lease = begin(queue)
    run(settings, engine, lease)
    other = find_model(settings, engine, "other").digest
    kept = GalleryStore(engine).head("default", other).point_for(other, None)
    assert kept is not None
    expected = calibration_of("other").operating_point
    assert (kept["threshold"], kept["method"]) == (expected.threshold, expected.method)
    result = queue.get(lease.job.id).result
    assert result is not None
    assert (result["sequences"], result["embedded"]) == (SEQUENCES + 4, SEQUENCES + 4)


def test_the_figures_of_a_card_are_its_numbers_and_its_evaluations_first_rows() -> None:
    evaluation = {"subjects": 9, "rows": {"mine": {"rank-1": [0.5, 0.4, 0.6]}, "other": {}}}
    metrics = {
        "rank1": 0.75,
        "note": "text",
        "good": True,
        "on test": evaluation,
        "odd": {"rows": 3},
    }
    assert activation.figures(metrics) == {"rank1": 0.75, "on test": {"rank-1": [0.5, 0.4, 0.6]}}
    assert activation.figures(None) == activation.figures({}) == {}
    assert len(activation.figures({str(number): number for number in range(1000)})) < 100


def embedded(engine: Engine, digest: str) -> int:
    with Session(engine) as session:
        query = select(func.count()).where(EmbeddingRow.digest == digest)
        return session.scalar(query) or 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_9_of_worker_and_server_in_an_activation_loses_nothing(
    tmp_path: Path, models: Path, settings: Settings, engine: Engine
) -> None:
    """Real processes: the deployment dies with its worker and child, twice, and ends the job."""
    fill(engine, settings, 800, first=SEQUENCES, frames=40)
    digest = find_model(settings, engine, "other").digest
    deployment = Deployment(tmp_path, models, quick_training=False)
    try:
        deployment.start()
        job_id = httpx.post(f"{deployment.url}/models/other/activate").json()["id"]
        until(lambda: embedded(engine, digest) > 0, "a first piece is embedded")
        os.kill(deployment.worker(), signal.SIGKILL)
        before = embedded(engine, digest)
        until(lambda: embedded(engine, digest) > before, "another worker goes on", timeout_s=120)
        deployment.stop(signal.SIGKILL)
        half = embedded(engine, digest)
        assert half < SEQUENCES + 800, "the machine is too fast for this test"
        assert active(engine) == "default"
        client = deployment.start()
        until(lambda: client.job(job_id).ended, "the job ends", timeout_s=120)
        job = client.job(job_id)
        assert (job.status, job.error) == ("succeeded", None)
        assert job.result is not None
        assert job.result["embedded"] <= SEQUENCES + 800 - half
        assert job.result["sequences"] == SEQUENCES + 800
        assert active(engine) == "other"
    finally:
        assert deployment.stop() == 0

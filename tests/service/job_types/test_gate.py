"""A distillation that may replace a gallery's model: whom it learns, and what lets it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import Engine

from models import checkpoint
from models.card import Card, ModelReference
from models.checkpoint import card_of
from models.networks import registry
from service.foundation.errors import Conflict
from service.foundation.settings import Settings
from service.gallery.active_model import models_of
from service.gallery.store import GalleryStore
from service.job_types.datasets import dataset_steps, gallery_export
from service.job_types.held_out_split import is_held_out, partition_of, trained_on
from service.job_types.requests import DistillRequest, GalleryDataset
from service.job_types.submission import Submission
from service.jobs.job import Job, Status
from service.jobs.job_type import JobRefused
from service.jobs.queue import ERASED, JobQueue
from service.privacy.erasure_transactions import erase_subject
from service.serving.lineage import TrainingRecord
from service.transfer.export import export_gallery
from tests.service.conftest import TINY, save_tiny_model
from tests.service.jobs.galleries import add, made_walk
from tests.service.jobs.workers import worker_of

HELD_OUT = [f"h{number}" for number in range(200) if is_held_out(f"h{number}")][:12]
LEARNT = [f"l{number}" for number in range(20) if not is_held_out(f"l{number}")][:4]


def save_blind_model(directory: Path) -> Card:
    """A model to which all people are one."""
    network = registry.build("gaitbase", TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    card = card_of(network, name="blind", metric="cosine", threshold=0.5)
    return checkpoint.save(directory, network, card)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_blind_model(folder / "default")
    save_tiny_model(folder / "teacher", seed=1)
    save_blind_model(folder / "blind")
    return folder


@pytest.fixture(autouse=True)
def filled(store: GalleryStore, quick_training: None) -> None:
    for number, subject in enumerate([*HELD_OUT, *LEARNT]):
        enrol(store, subject, number)


def enrol(store: GalleryStore, subject: str, number: int) -> None:
    """Two walks that are nearly the same picture, another one for each person."""
    rng = np.random.default_rng(number)
    picture = rng.random((64, 64)) < rng.uniform(0.1, 0.9)
    walks = []
    for walk in range(2):
        frames = np.repeat(np.where(picture, np.uint8(255), np.uint8(0))[None], 3, axis=0)
        frames[walk, :2] = 255
        embedding = np.zeros((4, 16), np.float32)
        walks.append(made_walk(embedding, frames))
    add(store, "default", subject, walks, "another digest")


@pytest.fixture
def submit(settings: Settings, engine: Engine) -> Callable[..., Job]:
    """Queues a distillation that may replace the gallery's model."""
    submission = Submission(settings, engine, JobQueue.of(engine, settings), lambda _: ())
    usual = {
        "recipe": "demo",
        "name": "mine",
        "dataset": {"gallery": "default"},
        "teachers": ["teacher"],
        "activate": "if_better",
    }
    return lambda **changes: submission.submit(DistillRequest.model_validate({**usual, **changes}))


@pytest.fixture
def distil(settings: Settings, engine: Engine, submit: Callable[..., Job]) -> Callable[..., Job]:
    """Queues and runs such a distillation; returns how it ended."""

    def run(**changes: object) -> Job:
        job = submit(**changes)
        assert worker_of(settings, engine).run_one()
        return JobQueue.of(engine, settings).get(job.id)

    return run


@pytest.mark.slow
def test_a_student_that_is_better_on_people_it_did_not_learn_is_activated(
    settings: Settings, engine: Engine, distil: Callable[..., Job]
) -> None:
    ended = distil()
    assert (ended.status, ended.error) == (Status.SUCCEEDED, None)
    result = ended.result
    assert result is not None
    assert result["better"], result["reason"]
    assert result["against"]["name"] == "default"
    assert result["comparison"]["subjects"] == len(HELD_OUT)
    assert result["comparison"]["interval"][0] > 0
    log = (settings.jobs_dir / ended.id / "log.txt").read_text()
    assert log.index("packing") < log.index("comparison")

    queue = JobQueue.of(engine, settings)
    activation = queue.get(result["activation"])
    assert (activation.type, activation.status) == ("activate", Status.QUEUED)
    assert worker_of(settings, engine).run_one()
    activated = queue.get(activation.id)
    assert (activated.status, activated.error) == (Status.SUCCEEDED, None)
    assert models_of(engine, "default").active == ModelReference("mine", result["digest"])


@pytest.mark.slow
def test_receipts_of_the_people_held_out_and_of_those_learnt_name_the_model(
    settings: Settings, engine: Engine, distil: Callable[..., Job]
) -> None:
    distil()
    enrol(GalleryStore(engine), "later", 99)
    models_of = TrainingRecord.of(settings.data_dir).models
    for subject, models in ((HELD_OUT[0], ("mine",)), (LEARNT[0], ("mine",)), ("later", ())):
        assert erase_subject(engine, "default", subject, models_of).models == models


@pytest.mark.slow
def test_a_better_student_of_somebody_erased_meanwhile_is_neither_registered_nor_activated(
    settings: Settings,
    engine: Engine,
    distil: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    succeed = JobQueue.succeed

    def erase_and_succeed(self: JobQueue, *args: Any, **kwargs: Any) -> Job:
        erase_subject(engine, "default", LEARNT[0])
        return succeed(self, *args, **kwargs)

    monkeypatch.setattr(JobQueue, "succeed", erase_and_succeed)
    ended = distil()
    assert (ended.status, ended.error) == (Status.FAILED, ERASED)
    assert not (settings.models_dir / "mine").exists()
    assert JobQueue.of(engine, settings).lease() is None


@pytest.mark.slow
def test_a_student_that_is_not_better_is_registered_and_not_activated(
    settings: Settings, engine: Engine, distil: Callable[..., Job]
) -> None:
    result = distil(teachers=["blind"]).result
    assert result is not None
    assert (result["better"], result["activation"]) == (False, None)
    assert "not shown to be better" in result["reason"]
    assert JobQueue.of(engine, settings).lease() is None
    assert models_of(engine, "default").active is None
    assert (settings.models_dir / "mine").is_dir()


def test_the_people_held_out_are_a_fifth_and_always_the_same(
    engine: Engine, tmp_path: Path
) -> None:
    share = sum(is_held_out(f"person {number}") for number in range(5000)) / 5000
    assert 0.18 < share < 0.22
    export_gallery(engine, "default", tmp_path / "gallery.zip")
    pack = tmp_path / "made.pack"
    pack.mkdir()
    (pack / "partition.json").write_text(partition_of(tmp_path / "gallery.zip"))
    assert trained_on(pack) == set(LEARNT)
    assert json.loads((pack / "partition.json").read_text())["TEST_SET"] == sorted(HELD_OUT)


def test_the_worker_writes_the_partition_before_the_gallery_is_packed(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    steps, _ = dataset_steps(settings, GalleryDataset(gallery="default"), tmp_path, hold_out=True)
    packing = steps[-1]
    assert packing.prepare is not None
    export_gallery(engine, "default", gallery_export(tmp_path))
    packing.prepare()
    partition = Path(packing.command[packing.command.index("--partition") + 1])
    assert json.loads(partition.read_text())["TRAIN_SET"] == sorted(LEARNT)
    gallery_export(tmp_path).write_bytes(b"no export")
    with pytest.raises(JobRefused, match="not a gallery export"):
        packing.prepare()


def test_a_pack_without_a_partition_is_learnt_whole_and_what_is_none_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "index.json").write_text(
        json.dumps({"sequences": [{"subject": "a"}, {"subject": "b"}, {"subject": "a"}]})
    )
    assert trained_on(tmp_path) == {"a", "b"}
    (tmp_path / "index.json").write_text('{"frames": 3}')
    with pytest.raises(ValueError, match="not a pack"):
        trained_on(tmp_path)
    (tmp_path / "not.zip").write_text("no")
    with pytest.raises(ValueError, match="not a gallery export"):
        partition_of(tmp_path / "not.zip")


def test_a_teacher_that_learnt_everybody_leaves_nobody_to_compare_on(
    engine: Engine, submit: Callable[..., Job], distil: Callable[..., Job]
) -> None:
    distil(name="greedy", activate="never")
    for made_from in ({"teachers": ["greedy"]}, {"student": "greedy"}):
        with pytest.raises(Conflict, match="'greedy' was trained on everybody"):
            submit(**made_from)
    GalleryStore(engine).ensure("lab")
    assert submit(teachers=["greedy"], gallery="lab").status is Status.QUEUED

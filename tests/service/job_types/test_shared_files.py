"""Hosts that share a store: packs, keys, clips and walks of jobs, and what an erasure leaves."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.gallery.store import GalleryStore
from service.job_types.datasets import drop_unused_packs, find_pack, has_pack
from service.job_types.sharing import share
from service.job_types.tidying import tidy_often, tidying
from service.jobs.job import Status
from service.jobs.queue import JobQueue
from service.jobs.scratch import scratch
from service.serving.lineage import BrokenKey, TrainingRecord
from service.serving.registry import ModelRegistry, resolve
from service.storage.file_store import FileStore
from service.storage.objects import StoreUnavailable
from tests.e2e.deployment import until
from tests.models.footage.clips import COLUMNS, crossing, encode
from tests.service.conftest import save_tiny_model
from tests.service.jobs.galleries import enrol
from tests.service.jobs.workers import worker_of
from tests.service.requests import identify, problem
from tests.service.server import Serve
from tests.service.storage.stores import opened
from tests.service.walkers import walk

DISTIL = {"recipe": "demo", "name": "mine", "dataset": {"gallery": "default"},
          "teachers": ["default"]}  # fmt: skip


@pytest.fixture
def settings(settings: Settings, store_folder: Path) -> Settings:
    """Of the host with the api, whose data folder has the database."""
    return settings.model_copy(update={"store": str(store_folder)})


@pytest.fixture
def other(settings: Settings, tmp_path: Path) -> Settings:
    """Of a host that only works."""
    there = tmp_path / "other"
    there.mkdir()
    return settings.model_copy(
        update={"data_dir": there, "database_url": settings.resolved_database_url}
    )


@pytest.fixture
def files(store_folder: Path) -> FileStore:
    return opened(store_folder)


def make_pack(settings: Settings, name: str, index: str = "{}") -> Path:
    pack = settings.datasets_dir / name
    pack.mkdir(parents=True, exist_ok=True)
    (pack / "index.json").write_text(index)
    (pack / "frames.bin").write_bytes(b"walks of somebody")
    return pack


def test_what_a_data_folder_has_is_shared_once_and_found_by_every_host(
    settings: Settings, other: Settings, engine: Engine, files: FileStore
) -> None:
    card = save_tiny_model(settings.models_dir / "mine", seed=3)
    pack = make_pack(settings, "walks.pack")
    (pack / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        list(share(settings, engine, files))
    (pack / "link").unlink()
    said = ["model mine: shared already", "dataset walks.pack: shared"]  # it was put before
    assert list(share(settings, engine, files)) == said
    assert list(share(settings, engine, files))[1] == "dataset walks.pack: shared already"
    assert ModelRegistry(other, engine).show("mine").digest == card.digest
    assert has_pack(other, "walks")
    found = find_pack(other, "walks")
    assert found is not None
    assert found.is_relative_to(other.data_dir.absolute())
    assert (found / "frames.bin").read_bytes() == b"walks of somebody"
    assert find_pack(other, "none") is None
    assert not has_pack(other, "none")


def test_a_model_whose_name_another_has_is_not_shared(
    settings: Settings, other: Settings, engine: Engine, files: FileStore
) -> None:
    save_tiny_model(settings.models_dir / "mine", seed=3)
    first = save_tiny_model(other.models_dir / "mine", seed=4)
    assert list(share(other, engine, files)) == ["model mine: shared"]
    assert list(share(settings, engine, files)) == [
        "model mine: not shared: another model has that name"
    ]
    assert ModelRegistry(settings, engine).show("mine").digest == first.digest


def test_a_pack_that_is_put_anew_is_another_and_one_that_is_gone_leaves_every_host(
    settings: Settings, other: Settings, files: FileStore
) -> None:
    files.put("datasets/walks.pack", make_pack(settings, "walks.pack"))
    old = find_pack(other, "walks")
    files.put("datasets/walks.pack", make_pack(settings, "walks.pack", index='{"more": 1}'))
    new = find_pack(other, "walks.pack")
    assert old is not None
    assert new is not None
    assert old != new
    assert (new / "index.json").read_text() == '{"more": 1}'
    drop_unused_packs(other)
    assert (old.exists(), new.exists()) == (False, True)
    week_ago = time.time() - 8 * 86_400
    os.utime(new.parent, (week_ago, week_ago))
    drop_unused_packs(other)
    assert not new.exists()
    assert find_pack(other, "walks") == new
    files.delete("datasets/walks.pack")
    drop_unused_packs(other)
    assert not new.exists()


def test_every_host_has_the_key_of_the_first(
    settings: Settings, other: Settings, files: FileStore, store_folder: Path, tmp_path: Path
) -> None:
    key = settings.data_dir / "receipts.key"
    settings.data_dir.mkdir()
    TrainingRecord.of(settings.data_dir)  # of before there was a store
    made = key.read_bytes()
    TrainingRecord.of(settings.data_dir, files)
    TrainingRecord.of(other.data_dir, files)
    assert (other.data_dir / "receipts.key").read_bytes() == key.read_bytes() == made
    assert (other.data_dir / "receipts.key").stat().st_mode & 0o077 == 0
    store_folder.rename(tmp_path / "away")
    TrainingRecord.of(other.data_dir, files)
    key.unlink()
    with pytest.raises(StoreUnavailable):
        TrainingRecord.of(settings.data_dir, files)
    (tmp_path / "away").rename(store_folder)
    key.write_bytes(b"k" * 32)
    with pytest.raises(BrokenKey, match="another than the store's"):
        TrainingRecord.of(settings.data_dir, files)


def test_a_job_distils_from_what_the_store_has_and_other_hosts_copies_go_with_the_model(
    settings: Settings,
    other: Settings,
    engine: Engine,
    files: FileStore,
    queue: JobQueue,
    quick_training: None,
    tmp_path: Path,
) -> None:
    save_tiny_model(tmp_path / "sent", seed=3)
    registry = ModelRegistry(settings, engine)
    registry.add_uploaded("teacher", tmp_path / "sent", lambda _: None)
    files.put("datasets/walks.pack", make_pack(settings, "walks.pack"))
    job = queue.enqueue("distill", {**DISTIL, "dataset": "walks", "teachers": ["teacher"]})
    assert worker_of(other, engine).run_one()
    assert (queue.get(job.id).status, queue.get(job.id).error) == (Status.SUCCEEDED, None)
    assert registry.show("mine").job_id == job.id
    copy = resolve(other, engine, "mine")
    for name in ("mine", "teacher"):
        registry.remove(name, lambda: None)
    left = scratch(other.jobs_dir / job.id) / "export"
    left.mkdir(parents=True)  # of a worker that was killed; the job ended elsewhere
    with tidying(other, engine, often_s=0.05):
        until(lambda: not copy.exists() and not left.exists(), "this host is tidied")
    assert list(files.keys("models")) == []


def test_an_erasure_leaves_nothing_of_a_jobs_walks_in_the_store_or_at_its_host(
    settings: Settings,
    other: Settings,
    engine: Engine,
    store: GalleryStore,
    queue: JobQueue,
    serve: Serve,
    store_folder: Path,
    quick_training: None,
) -> None:
    enrol(store, "default", "erased-person", 1)
    client = serve(store=str(store_folder))
    job = queue.enqueue("distill", {**DISTIL, "overrides": {"steps": 1000, "seconds": 0.05}})
    worker = worker_of(other, engine)
    running = threading.Thread(target=worker.run_one)
    running.start()
    try:
        until(lambda: queue.get(job.id).progress.step > 2, "the training has begun")
        parts = {path.name for path in (store_folder / "jobs" / job.id / "1" / "scratch").iterdir()}
        assert parts == {"gallery.zip", "dataset.pack"}
        assert client.delete("/subjects/erased-person").json()["jobs"] == [job.id]
    finally:
        worker.stop()
        running.join()
    assert queue.get(job.id).status is Status.CANCELLED
    assert not scratch(other.jobs_dir / job.id).exists()
    assert [
        path for path in store_folder.rglob("*") if path.is_file() and "keys" not in path.parts
    ] == []


def test_an_erasure_reaches_the_walks_of_a_job_that_waits_for_another_host(
    settings: Settings,
    other: Settings,
    engine: Engine,
    store: GalleryStore,
    queue: JobQueue,
    serve: Serve,
    store_folder: Path,
    quick_training: None,
) -> None:
    enrol(store, "default", "erased-person", 1)
    client = serve(store=str(store_folder))
    job = queue.enqueue("distill", {**DISTIL, "overrides": {"steps": 1000, "seconds": 0.05}})
    worker = worker_of(other, engine)
    running = threading.Thread(target=worker.run_one)
    running.start()
    until(lambda: queue.get(job.id).progress.step > 2, "the training has begun")
    worker.stop()
    running.join()
    assert (store_folder / "jobs" / job.id / "1" / "scratch" / "gallery.zip").exists()
    client.delete("/subjects/erased-person").raise_for_status()
    assert not (store_folder / "jobs").exists()
    tidy_often(other, engine)
    assert not scratch(other.jobs_dir / job.id).exists()


@pytest.fixture
def films(serve: Serve, store_folder: Path, engine: Engine) -> httpx.Client:
    return serve(segmenter="background", store=str(store_folder))


def send(client: httpx.Client, **fields: str) -> httpx.Response:
    data = encode(crossing((1, -60.0, COLUMNS + 60.0), frames=75))
    return client.post("/jobs/footage", data=fields, files={"footage": ("hall.mp4", data)})


def test_a_clip_that_one_host_takes_is_read_at_another(
    films: httpx.Client,
    settings: Settings,
    other: Settings,
    engine: Engine,
    files: FileStore,
    store_folder: Path,
) -> None:
    queued = send(films).json()["id"]
    assert not (settings.jobs_dir / queued).exists()
    assert list(files.keys("jobs")) == [f"jobs/{queued}/0/scratch/clip"]
    there = other.model_copy(update={"segmenter": "background"})
    assert worker_of(there, engine).run_one()
    job = films.get(f"/jobs/{queued}").json()
    assert (job["status"], job["error"]) == ("succeeded", None)
    assert len(job["result"]["walks"]) == 1
    assert not (store_folder / "jobs").exists()


def test_a_clip_whose_job_is_refused_or_cancelled_leaves_nothing_in_the_store(
    films: httpx.Client, store_folder: Path
) -> None:
    assert send(films, gallery="nope").status_code == 404
    assert not (store_folder / "jobs").exists()
    queued = send(films).json()["id"]
    films.post(f"/jobs/{queued}/cancel").raise_for_status()
    assert not (store_folder / "jobs").exists()


def test_while_the_store_is_away_what_needs_it_is_refused_and_the_rest_goes_on(
    films: httpx.Client,
    settings: Settings,
    engine: Engine,
    store_folder: Path,
    tmp_path: Path,
) -> None:
    films.post(
        "/enroll",
        data={"subject_id": "anna"},
        files={"sequence": ("walk.npz", walk(1))},
    ).raise_for_status()
    store_folder.rename(tmp_path / "away")
    save_tiny_model(tmp_path / "sent", seed=3)
    sent = {
        name: (path.name, path.read_bytes())
        for name, path in (
            ("weights", tmp_path / "sent" / "weights.safetensors"),
            ("card", tmp_path / "sent" / "card.json"),
        )
    }
    for answer in (films.post("/models", data={"name": "mine"}, files=sent), send(films)):
        assert problem(answer, 503)["type"].endswith("store-unavailable")
        assert float(answer.headers["retry-after"]) > 0
    assert identify(films, walk(1)).status_code == 200
    assert films.get("/models").status_code == 200
    assert films.get("/readyz").status_code == 200
    assert films.delete("/subjects/anna").status_code == 200
    assert list(films.get("/jobs").json()["items"]) == []
    (tmp_path / "away").rename(store_folder)
    assert films.post("/models", data={"name": "mine"}, files=sent).status_code == 201

"""Models of hosts that share a store and a database, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models import checkpoint
from models.card import CARD, WEIGHTS
from service.foundation.errors import Conflict, NotFound
from service.foundation.settings import Settings
from service.job_types.submission import Submission
from service.jobs.queue import JobQueue
from service.serving.model_files import ModelRow, UnreadableCard, open_model_files
from service.serving.registry import ModelRegistry, Source, card_of, find_model, resolve
from service.storage.database import now
from service.storage.file_store import FileStore, StoreDamaged, open_store
from service.storage.objects import FolderObjects, StoreUnavailable
from tests.service.conftest import save_tiny_model


class Hosts:
    """Two hosts, each with a data folder of its own."""

    def __init__(self, settings: Settings, engine: Engine, root: Path) -> None:
        self.engine = engine
        self.root = root
        self.settings = [
            settings.model_copy(update={"store": str(root), "data_dir": settings.data_dir / name})
            for name in ("one", "two")
        ]
        self.registries = [ModelRegistry(one, engine) for one in self.settings]
        store = open_store(self.settings[0])
        assert store is not None
        self.store: FileStore = store

    def resolved(self, host: int, name: str) -> Path:
        return resolve(self.settings[host], self.engine, name)


@pytest.fixture
def hosts(settings: Settings, engine: Engine, tmp_path: Path) -> Hosts:
    root = tmp_path / "store"
    root.mkdir()
    return Hosts(settings, engine, root)


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_that_one_host_adds_another_fetches_when_it_needs_it(
    hosts: Hosts, tmp_path: Path
) -> None:
    card = save_tiny_model(tmp_path / "sent", seed=3)
    added = hosts.registries[0].add_uploaded("mine", tmp_path / "sent", lambda _: None)
    assert (added.digest, added.source) == (card.digest, Source.IMPORTED)
    assert find_model(hosts.settings[1], hosts.engine, "mine").digest == card.digest
    assert not hosts.settings[1].cache_dir.exists()  # a digest needs no file
    folder = hosts.resolved(1, "mine")
    assert folder.is_relative_to(hosts.settings[1].data_dir)
    assert held(folder) == held(tmp_path / "sent")
    assert [model.name for model in hosts.registries[1].all()] == [
        "default", "mine", "other", "uncalibrated",
    ]  # fmt: skip
    shutil.rmtree(hosts.root)
    assert hosts.resolved(1, "mine") == folder  # without the store, from now on


def test_an_activation_is_queued_by_the_card_alone(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = save_tiny_model(tmp_path / "sent", seed=3)
    hosts.registries[0].add_uploaded("mine", tmp_path / "sent", lambda _: None)
    settings = hosts.settings[1]
    objects, read = FolderObjects.read, list[str]()

    def reading(self: FolderObjects, key: str) -> Iterator[bytes]:
        read.append(key)
        return objects(self, key)

    monkeypatch.setattr(FolderObjects, "read", reading)
    queue = JobQueue.of(hosts.engine, settings)
    job = Submission(settings, hosts.engine, queue, lambda _: ()).activate("mine", "default")
    assert job.request["name"] == "mine"
    assert [Path(key).name for key in read] == ["manifest.json", CARD]
    assert not settings.cache_dir.exists()
    assert card_of(settings, hosts.engine, "mine") == card
    hosts.resolved(1, "mine")
    shutil.rmtree(hosts.root)
    assert card_of(settings, hosts.engine, "mine") == card  # of this host's copy
    with pytest.raises(NotFound):
        card_of(settings, hosts.engine, "theirs")


def test_a_card_in_the_store_that_is_not_the_rows_is_not_believed(
    hosts: Hosts, tmp_path: Path
) -> None:
    card = save_tiny_model(tmp_path / "sent", seed=3)
    hosts.registries[0].add_uploaded("mine", tmp_path / "sent", lambda _: None)
    save_tiny_model(tmp_path / "another", seed=4)
    hosts.store.put(f"models/mine/{card.digest}", tmp_path / "another")
    with pytest.raises(StoreDamaged):
        card_of(hosts.settings[1], hosts.engine, "mine")
    hosts.store.delete(f"models/mine/{card.digest}")
    with pytest.raises(UnreadableCard):
        card_of(hosts.settings[1], hosts.engine, "mine")


def test_a_trained_model_is_in_the_store_before_its_row_says_so(
    hosts: Hosts, tmp_path: Path
) -> None:
    card = save_tiny_model(tmp_path / "run", seed=3)
    job_id = JobQueue(hosts.engine, lease_seconds=30, max_attempts=3).enqueue("distill", {}).id
    for _ in range(2):  # an attempt that is killed before its row is followed by another
        staged = hosts.registries[0].stage_trained(
            "mine", tmp_path / "run", job_id=job_id, metrics={}
        )
    assert list(hosts.store.keys("models")) == [f"models/mine/{card.digest}"]
    with pytest.raises(NotFound):
        hosts.resolved(1, "mine")
    with Session(hosts.engine) as session, session.begin():
        session.add(staged.row)
        staged.files.move_in()
    staged.files.discard()  # too late
    assert hosts.registries[1].show("mine").job_id == job_id
    with pytest.raises(Conflict):
        hosts.registries[1].stage_trained("mine", tmp_path / "run", job_id=job_id, metrics={})


def test_a_model_that_is_withdrawn_leaves_nothing_in_the_store(
    hosts: Hosts, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "run", seed=3)
    staged = hosts.registries[0].stage_trained("mine", tmp_path / "run", job_id="1", metrics={})
    staged.files.withdraw()
    assert [path for path in hosts.root.rglob("*") if path.is_file()] == []


def test_a_model_that_is_removed_is_gone_from_the_store_and_from_every_cache(
    hosts: Hosts, tmp_path: Path
) -> None:
    for seed, name in enumerate(("mine", "kept"), start=3):
        save_tiny_model(tmp_path / name, seed=seed)
        hosts.registries[0].add_uploaded(name, tmp_path / name, lambda _: None)
    folders = [hosts.resolved(host, name) for host in (0, 1) for name in ("mine", "kept")]
    hosts.registries[0].remove("mine", lambda: None)
    assert [key.split("/")[1] for key in hosts.store.keys("models")] == ["kept"]
    assert [folder.exists() for folder in folders] == [False, True, True, True]
    open_model_files(hosts.settings[1], hosts.engine).tidy_cache()
    assert [folder.exists() for folder in folders] == [False, True, False, True]
    with pytest.raises(NotFound):
        hosts.registries[1].remove("mine", lambda: None)


def test_a_name_that_is_used_again_is_another_checkpoint_on_every_host(
    hosts: Hosts, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "first", seed=3)
    hosts.registries[0].add_uploaded("mine", tmp_path / "first", lambda _: None)
    old = hosts.resolved(1, "mine")
    hosts.registries[0].remove("mine", lambda: None)
    second = save_tiny_model(tmp_path / "second", seed=4)
    hosts.registries[0].add_uploaded("mine", tmp_path / "second", lambda _: None)
    new = hosts.resolved(1, "mine")
    assert new != old
    assert checkpoint.load(new)[1].digest == second.digest


def test_an_upload_that_is_refused_leaves_the_model_of_that_name(
    hosts: Hosts, tmp_path: Path
) -> None:
    first = save_tiny_model(tmp_path / "first", seed=3)
    hosts.registries[0].add_uploaded("mine", tmp_path / "first", lambda _: None)
    save_tiny_model(tmp_path / "second", seed=4)

    def fail(_digest: str) -> None:
        raise RuntimeError("no record")

    for name, sent in (("mine", "first"), ("mine", "second")):
        with pytest.raises(Conflict):
            hosts.registries[1].add_uploaded(name, tmp_path / sent, lambda _: None)
    with pytest.raises(RuntimeError, match="no record"):
        hosts.registries[1].add_uploaded("other-one", tmp_path / "second", fail)
    assert list(hosts.store.keys("models")) == [f"models/mine/{first.digest}"]


def test_another_checkpoint_in_the_store_is_not_taken_for_the_rows(
    hosts: Hosts, tmp_path: Path
) -> None:
    card = save_tiny_model(tmp_path / "mine", seed=3)
    hosts.registries[0].add_uploaded("mine", tmp_path / "mine", lambda _: None)
    save_tiny_model(tmp_path / "swapped", seed=4)
    key = f"models/mine/{card.digest}"
    hosts.store.put(key, tmp_path / "swapped")  # whole, and belonging together
    with pytest.raises(StoreDamaged):
        hosts.resolved(1, "mine")
    shutil.copy(tmp_path / "mine" / CARD, tmp_path / "swapped" / CARD)
    hosts.store.put(key, tmp_path / "swapped")  # the right card, and other weights
    with pytest.raises(StoreDamaged):
        hosts.resolved(1, "mine")
    (tmp_path / "swapped" / CARD).write_bytes(b"{}")
    hosts.store.put(key, tmp_path / "swapped")
    with pytest.raises(UnreadableCard):
        hosts.resolved(1, "mine")
    (tmp_path / "swapped" / WEIGHTS).unlink()
    shutil.copy(tmp_path / "mine" / CARD, tmp_path / "swapped" / CARD)
    hosts.store.put(key, tmp_path / "swapped")
    with pytest.raises(StoreDamaged):
        hosts.resolved(1, "mine")
    assert list((hosts.settings[1].cache_dir / "models").iterdir()) == []
    hosts.store.put(key, tmp_path / "mine")  # as its operator is told to
    assert held(hosts.resolved(1, "mine")) == held(tmp_path / "mine")


def test_a_model_that_the_store_lacks_is_named_and_does_not_hide_the_others(
    hosts: Hosts, tmp_path: Path
) -> None:
    card = save_tiny_model(tmp_path / "mine", seed=3)
    with Session(hosts.engine) as session, session.begin():
        session.add(ModelRow(name="old", digest=card.digest, metrics={}, created_at=now()))
    with pytest.raises(UnreadableCard, match="gaitid share"):
        hosts.resolved(0, "old")
    assert "old" not in [model.name for model in hosts.registries[0].all()]
    hosts.registries[0].remove("old", lambda: None)


def test_without_the_store_nothing_is_removed_and_nothing_is_added(
    hosts: Hosts, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "mine", seed=3)
    hosts.registries[0].add_uploaded("mine", tmp_path / "mine", lambda _: None)
    hosts.root.rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable):
        hosts.registries[0].remove("mine", lambda: None)
    with pytest.raises(StoreUnavailable):
        hosts.registries[0].add_uploaded("more", tmp_path / "mine", lambda _: None)
    with pytest.raises(StoreUnavailable):
        hosts.resolved(1, "mine")
    (tmp_path / "away").rename(hosts.root)
    assert sorted(hosts.registries[1]._files.names()) == ["mine"]
    assert held(hosts.resolved(1, "mine")) == held(tmp_path / "mine")


def test_what_killed_processes_left_in_the_store_is_removed_a_day_later(
    hosts: Hosts, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "mine", seed=3)
    hosts.registries[0].add_uploaded("mine", tmp_path / "mine", lambda _: None)
    hosts.registries[0]._files.stage("never", "0" * 64, tmp_path / "mine", by="killed")
    hosts.store.put("models/stray", tmp_path / "mine")
    files = open_model_files(hosts.settings[1], hosts.engine)
    files.tidy(now() - timedelta(days=1))
    assert len(list(hosts.store.keys("models"))) == 3
    files.tidy(now() + timedelta(minutes=1))
    assert [key.split("/")[1] for key in hosts.store.keys("models")] == ["mine"]

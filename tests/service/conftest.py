from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import copyfile
from typing import Any

import httpx
import pytest
import torch
from sqlalchemy import Engine

from models import checkpoint
from models.card import Card
from models.checkpoint import card_of
from models.networks import registry
from service.foundation.settings import Settings
from service.gallery.store import GalleryStore
from service.http.resources import open_engine
from service.jobs.queue import JobQueue
from service.storage.data_folder import open_data_folder
from service.storage.database import migrate, open_database
from tests.e2e.deployment import QUICK_TRAINING
from tests.service.jobs.workers import Workers, working
from tests.service.server import Serve, serving, settings_for
from tests.service.statements import pragma_of_every_connection

TINY = {
    "channels": [4, 8, 8, 16],
    "layers": [1, 1, 1, 1],
    "embedding_channels": 16,
    "parts": 4,
    "identities": 0,
}


def save_tiny_model(
    directory: Path,
    *,
    seed: int = 0,
    threshold: float | None = 0.99,
    architecture: str = "gaitbase",
    **changes: int,
) -> Card:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = registry.build(architecture, {**TINY, **changes})
    card = card_of(network, name="tiny", metric="cosine", threshold=threshold)
    return checkpoint.save(directory, network, card)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny real checkpoints: `default`, an unlike `other`, and one without a threshold."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "default")
    save_tiny_model(folder / "uncalibrated", threshold=None)
    save_tiny_model(folder / "other", seed=1)
    return folder


@pytest.fixture
def settings(tmp_path: Path, models: Path) -> Settings:
    return settings_for(tmp_path / "data", models)


@pytest.fixture
def serve(tmp_path: Path, models: Path) -> Iterator[Serve]:
    """Starts the service with changed settings; it stops after the test."""
    with ExitStack() as stack:

        def start(**changes: Any) -> httpx.Client:
            settings = settings_for(tmp_path / "data", models, **changes)
            return stack.enter_context(serving(settings))

        yield start


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[httpx.Client]:
    """A service for the tests of one file that leave it as they found it."""
    with serving(settings_for(tmp_path_factory.mktemp("shared"), models)) as client:
        yield client


@pytest.fixture
def impatient() -> Iterator[None]:
    """The database says that it is busy after a moment, not after ten seconds."""
    with pragma_of_every_connection("busy_timeout=100"):
        yield


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file as the migrations leave it, with the empty gallery `default`."""
    path = tmp_path_factory.mktemp("database") / "gaitid.sqlite"
    engine = open_database(f"sqlite:///{path}")
    migrate(engine)
    GalleryStore(engine).ensure("default")
    engine.dispose()
    return path


@pytest.fixture
def engine(settings: Settings, new_database: Path) -> Iterator[Engine]:
    """The deployment's database, also of what `serve` serves, with the empty gallery `default`."""
    open_data_folder(settings)
    copyfile(new_database, settings.data_dir / "gaitid.sqlite")
    engine = open_engine(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> GalleryStore:
    return GalleryStore(engine)


@pytest.fixture
def queue(engine: Engine, settings: Settings) -> JobQueue:
    """The jobs of the deployment."""
    return JobQueue.of(engine, settings)


@pytest.fixture
def quick_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs end at once: jobs find a stand-in for `python -m training`."""
    monkeypatch.setenv("PYTHONPATH", str(QUICK_TRAINING), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)  # so that `-m training` does not find the repository's first


@pytest.fixture
def workers(settings: Settings, engine: Engine) -> Workers:
    return lambda: working(settings, engine)

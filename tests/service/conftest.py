from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
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
from service.storage.database import open_database
from tests.service.server import serving, settings_for
from tests.service.statements import pragma_of_every_connection

TINY = {
    "channels": [4, 8, 8, 16],
    "layers": [1, 1, 1, 1],
    "embedding_channels": 16,
    "parts": 4,
    "identities": 0,
}


def save_tiny_model(
    directory: Path, *, seed: int = 0, threshold: float | None = 0.99, **changes: int
) -> Card:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = registry.build("gaitbase", {**TINY, **changes})
    card = card_of(network, name="tiny", metric="cosine", threshold=threshold)
    return checkpoint.save(directory, network, card)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models whose `default` is a tiny real checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "default")
    save_tiny_model(folder / "uncalibrated", threshold=None)
    return folder


@pytest.fixture
def settings(tmp_path: Path, models: Path) -> Settings:
    return settings_for(tmp_path / "data", models)


@pytest.fixture
def serve(tmp_path: Path, models: Path) -> Iterator[Callable[..., httpx.Client]]:
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


@pytest.fixture
def engine(settings: Settings, serve: Callable[..., httpx.Client]) -> Iterator[Engine]:
    """The database of what `serve` serves."""
    engine = open_database(settings.resolved_database_url)
    yield engine
    engine.dispose()

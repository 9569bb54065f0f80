from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment
from tests.service.conftest import save_tiny_model


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shipped models whose `default` is a tiny real checkpoint."""
    folder = tmp_path_factory.mktemp("shipped")
    save_tiny_model(folder / "default")
    return folder


@pytest.fixture
def deployment(tmp_path: Path, shipped: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path, shipped)
    yield deployment
    if deployment.process is not None:
        deployment.stop()


@pytest.fixture
def learning_deployment(tmp_path: Path, shipped: Path) -> Iterator[Deployment]:
    """A deployment whose jobs really train."""
    deployment = Deployment(tmp_path, shipped, quick_training=False)
    yield deployment
    if deployment.process is not None:
        deployment.stop()

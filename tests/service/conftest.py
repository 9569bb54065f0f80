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
from sqlalchemy import Engine, Pool, event

from models import checkpoint
from models.card import Card
from models.checkpoint import card_of
from models.networks import registry
from service.foundation.settings import Settings
from service.gallery.milvus_index import Milvus
from service.gallery.store import GalleryStore
from service.http.resources import open_engine
from service.jobs.queue import JobQueue
from service.storage.data_folder import open_data_folder
from service.storage.database import migrate, open_database
from tests.e2e.deployment import QUICK_TRAINING
from tests.service import postgresql
from tests.service import searched as searched_galleries
from tests.service.jobs.workers import Workers, working
from tests.service.postgresql import PostgreSQL
from tests.service.server import Serve, serving, settings_for

TINY = {
    "channels": [4, 8, 8, 16],
    "layers": [1, 1, 1, 1],
    "embedding_channels": 16,
    "parts": 4,
    "identities": 0,
}

DATABASES = ("sqlite", "postgresql")
# Where each test that has a database runs once with either, unless it is marked for one: it looks
# into its files, or tells it how to behave.
OVER_BOTH = (
    "access",
    "gallery/test_editing.py",
    "gallery/test_encryption.py",
    "gallery/test_galleries.py",
    "gallery/test_live_index.py",
    "gallery/test_scenes.py",
    "gallery/test_walk_keys.py",
    "jobs/test_queue.py",
    "jobs/test_routes.py",
    "jobs/test_worker.py",
    "privacy",
    "storage/test_idempotency.py",
    "test_crashes.py",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database" not in metafunc.fixturenames:
        return
    test = metafunc.definition
    place = test.path.relative_to(Path(__file__).parent).as_posix()
    marked = [name for name in DATABASES if test.get_closest_marker(name) is not None]
    if marked or place.startswith(OVER_BOTH):
        metafunc.parametrize("database", marked or DATABASES, indirect=True)


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A server of the tests' own, with a database `migrated` to make copies of."""
    programs = postgresql.binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL on this machine (Debian: apt-get install postgresql)")
    with postgresql.running(programs) as server:
        engine = open_database(server.url(server.create(name="migrated")))
        migrate(engine)
        migrate(engine, "audit")
        GalleryStore(engine).ensure("default")
        engine.dispose()
        yield server


@pytest.fixture
def database(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str | None]:
    """The URL of a new database for the test, or None: a SQLite file in its data folder.

    It is the default of settings, also of child processes. Connections that are left open are
    closed at the end: only PostgreSQL's complain if they are not.
    """
    if getattr(request, "param", "sqlite") == "sqlite":
        yield None
        return
    server: PostgreSQL = request.getfixturevalue("postgres")
    name = server.create("migrated")
    monkeypatch.setenv("GAITID_DATABASE_URL", server.url(name))
    opened: list[Any] = []

    def connected(connection: Any, _record: object) -> None:
        opened.append(connection)

    event.listen(Pool, "connect", connected)
    yield server.url(name)
    event.remove(Pool, "connect", connected)
    for connection in opened:
        connection.close()
    server.drop(name)


@pytest.fixture
def settings(tmp_path: Path, models: Path, database: str | None) -> Settings:
    return settings_for(tmp_path / "data", models)


@pytest.fixture
def serve(tmp_path: Path, models: Path, database: str | None) -> Iterator[Serve]:
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
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases that are opened from now on say that they are busy after a moment."""
    monkeypatch.setattr("service.storage.database._LOCK_WAIT_MS", 100)


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
    if settings.database_url is None:
        copyfile(new_database, settings.database_file)
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


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    """A vector database for all tests; each has collections of its own."""
    opened = searched_galleries.open_milvus(tmp_path_factory.mktemp("milvus"))
    yield opened
    opened.close()


@pytest.fixture
def searched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `tests.service.searched.both` has galleries searched."""
    if request.param == "in Milvus":
        monkeypatch.setattr(searched_galleries, "in_milvus", request.getfixturevalue("milvus"))

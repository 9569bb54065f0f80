from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.jobs.queue import JobQueue
from service.storage.database import Table, open_database


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.sqlite'}"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    Table.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def open_queue(engine: Engine) -> Callable[..., JobQueue]:
    def build(lease_seconds: float = 30.0, max_attempts: int = 3) -> JobQueue:
        return JobQueue(engine, lease_seconds=lease_seconds, max_attempts=max_attempts)

    return build


@pytest.fixture
def queue(open_queue: Callable[..., JobQueue]) -> JobQueue:
    return open_queue()

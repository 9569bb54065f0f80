from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.jobs.queue import JobQueue


@pytest.fixture
def database_url(settings: Settings) -> str:
    return settings.resolved_database_url


@pytest.fixture
def open_queue(engine: Engine) -> Callable[..., JobQueue]:
    def build(lease_seconds: float = 30.0, max_attempts: int = 3) -> JobQueue:
        return JobQueue(engine, lease_seconds=lease_seconds, max_attempts=max_attempts)

    return build


@pytest.fixture
def queue(open_queue: Callable[..., JobQueue]) -> JobQueue:
    return open_queue()

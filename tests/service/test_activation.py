"""Activation and rollback over HTTP: a real server, a real worker, real children."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from service.database import open_database
from service.jobs.crew import Crew
from service.jobs.lane import LANES
from service.jobs.queue import JobQueue
from service.jobs.types import job_types
from service.jobs.worker import Worker
from service.settings import Settings
from tests.service.conftest import save_tiny_model
from tests.service.requests import enrol, identify, verify
from tests.service.walkers import walk

Serve = Callable[..., httpx.Client]
PEOPLE = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one kind whose embeddings, thresholds and parts have nothing in common."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "default", threshold=0.991)
    save_tiny_model(folder / "other", seed=1, threshold=0.982, parts=8)
    save_tiny_model(folder / "third", seed=2, threshold=0.973)
    return folder


@pytest.fixture
def engine(settings: Settings, serve: Serve) -> Iterator[Engine]:
    engine = open_database(settings.resolved_database_url)
    yield engine
    engine.dispose()


@contextmanager
def working(settings: Settings, engine: Engine) -> Iterator[None]:
    """A crew of workers as `gaitid worker` has, until the block ends."""
    crew = Crew(
        [
            Worker(
                JobQueue.of(engine, settings),
                job_types(settings, engine),
                folders=settings.jobs_dir,
                grace_s=0.5,
                poll_s=0.05,
                lane=lane,
            )
            for lane in LANES
        ]
    )
    thread = threading.Thread(target=crew.run)
    thread.start()
    try:
        yield
    finally:
        crew.stop()
        thread.join()


def ended(client: httpx.Client, started: httpx.Response) -> dict[str, Any]:
    """The job, once it has ended."""
    assert started.status_code == 202, started.text
    deadline = time.monotonic() + 60
    while True:
        job: dict[str, Any] = client.get(started.headers["location"]).json()
        if job["finished_at"] is not None:
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.05)


def answers_with(client: httpx.Client, name: str, gallery: str = "default") -> dict[str, Any]:
    """An identification by this model, which the process may take a moment to load."""
    deadline = time.monotonic() + 15
    while True:
        body: dict[str, Any] = identify(client, walk(1), gallery=gallery).json()
        if body["model"]["name"] == name:
            return body
        assert time.monotonic() < deadline, body
        time.sleep(0.05)


def fill(client: httpx.Client, gallery: str = "default") -> None:
    for person in range(PEOPLE):
        answer = enrol(client, f"p{person}", walk(person), walk(person, phase=1.0), gallery=gallery)
        assert answer.status_code == 201


def test_a_gallery_is_given_another_model_and_back_and_others_keep_theirs(
    serve: Serve, settings: Settings, engine: Engine
) -> None:
    client = serve()
    client.post("/galleries", json={"name": "lab"})
    fill(client)
    fill(client, "lab")
    digests = {model["name"]: model["digest"] for model in client.get("/models").json()["items"]}
    before = identify(client, walk(1)).json()
    assert before["model"] == {"name": "default", "digest": digests["default"]}
    with working(settings, engine):
        job = ended(client, client.post("/models/other/activate", json={"gallery": "default"}))
    assert (job["status"], job["error"]) == ("succeeded", None)
    result = job["result"]
    assert (result["model"], result["digest"]) == ("other", digests["other"])
    assert result["previous"] == {"name": "default", "digest": digests["default"]}
    assert (result["sequences"], result["embedded"]) == (2 * PEOPLE, 2 * PEOPLE)
    compared = result["comparison"]
    assert (compared["subjects"], compared["searches"]) == (PEOPLE, 2 * PEOPLE)
    assert {"rank1_new", "rank1_old", "agreement", "interval", "difference"} <= set(compared)

    after = answers_with(client, "other")
    assert after["model"]["digest"] == digests["other"]
    assert after["threshold"] == 0.982
    assert after["candidates"][0]["subject_id"] == "p1"
    assert verify(client, "p1", walk(1)).json()["model"] == after["model"]
    assert enrol(client, "late", walk(9)).json()["model"] == after["model"]
    assert identify(client, walk(9)).json()["candidates"][0]["subject_id"] == "late"
    assert identify(client, walk(1), gallery="lab").json()["model"] == before["model"]
    shown = client.get("/galleries/default").json()
    assert (shown["model"]["name"], shown["previous_model"]["name"]) == ("other", "default")
    listed = {model["name"]: model for model in client.get("/models").json()["items"]}
    assert listed["other"]["active_in"] == ["default"]
    assert (listed["default"]["active_in"], listed["default"]["previous_in"]) == (
        ["lab"], ["default"],
    )  # fmt: skip

    job = ended(client, client.post("/models/rollback", json={"gallery": "default"}))
    assert (job["type"], job["status"], job["result"]["model"]) == (
        "rollback", "succeeded", "default",
    )  # fmt: skip
    back = identify(client, walk(9)).json()  # at once, and with what was enrolled meanwhile
    assert (back["model"], back["threshold"]) == (before["model"], 0.991)
    assert back["candidates"][0]["subject_id"] == "late"
    restarted = serve()
    assert identify(restarted, walk(1)).json()["model"] == before["model"]
    assert client.post("/models/rollback").status_code == 202
    assert answers_with(client, "other")["threshold"] == 0.982
    assert answers_with(restarted, "other")["threshold"] == 0.982  # another process notices too

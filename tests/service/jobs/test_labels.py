"""Workers take what fits them, and a job that fits nobody says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from service.foundation.settings import Settings
from service.gallery.store import GalleryStore
from service.job_types.distillation import recipe_needs
from service.job_types.requests import CalibrateRequest, EvaluateRequest, GalleryDataset
from service.job_types.submission import Submission
from service.jobs.job import Status
from service.jobs.labels import as_text, detect, fits, from_text, in_words, parse
from service.jobs.presence import Presence, living_workers, waiting_for
from service.jobs.queue import JobQueue
from service.storage.database import writing
from tests.e2e.deployment import until
from tests.service.jobs.fake_worker import fake_worker
from tests.service.requests import problem
from tests.service.server import Serve
from training.recipe import load

OpenQueue = Callable[..., JobQueue]
Changed = Callable[[Path], Path]


def test_labels_are_names_with_amounts() -> None:
    assert parse(["gpu", " memory=64", "site-a=0"]) == {"gpu": 1.0, "memory": 64.0, "site-a": 0.0}
    assert in_words({"memory": 64.0, "gpu": 1.5}) == "gpu=1.5 memory=64"
    assert as_text({"b": 1.0, "a": 2.0}) == as_text({"a": 2.0, "b": 1.0})
    assert from_text(as_text({"a": 2.5})) == {"a": 2.5}


@pytest.mark.parametrize(
    "wrong", ["", "=1", "GPU", "gpu=", "gpu=two", "gpu=nan", "gpu=inf", "gpu=-1", "a b", "x" * 33]
)
def test_what_is_no_label_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no label"):
        parse([wrong])


def test_a_worker_finds_out_what_its_container_may_use(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{3 * 2**29}\n")
    found = detect(gpu=False, cgroup=tmp_path)
    assert found["cpu"] >= 1
    assert found["memory"] == 1.5
    assert found["gpu"] == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert detect(gpu=False, cgroup=tmp_path)["memory"] > 0


def test_a_worker_leases_only_what_fits_it(queue: JobQueue) -> None:
    large = queue.enqueue("fake", {}, needs={"gpu": 1, "memory": 64})
    small = queue.enqueue("fake", {}, needs={"memory": 2})
    has = {"memory": 16.0, "gpu": 0.0}
    lease = queue.lease(None, has)
    assert lease is not None
    assert lease.job.id == small.id
    assert queue.lease(None, has) is None
    assert queue.get(large.id).status is Status.QUEUED
    lease = queue.lease(None, {"memory": 64.0, "gpu": 2.0})
    assert lease is not None
    assert (lease.job.id, lease.job.needs) == (large.id, {"gpu": 1.0, "memory": 64.0})
    assert not fits({"site-a": 1.0}, has)
    assert fits({"gpu": 0.0}, {})


def test_a_queue_full_of_what_fits_others_is_no_obstacle(queue: JobQueue, tmp_path: Path) -> None:
    for _ in range(3):
        queue.enqueue("fake", {}, needs={"gpu": 1})
    mine = queue.enqueue("fake", {})
    worker = fake_worker(queue, tmp_path, labels={"gpu": 0.0})
    assert worker.run_one()
    assert not worker.run_one()
    assert queue.get(mine.id).status is Status.SUCCEEDED


def test_a_job_that_no_living_worker_fits_says_what_it_waits_for(
    queue: JobQueue, engine: Engine
) -> None:
    job = queue.enqueue("fake", {}, needs={"gpu": 1, "memory": 64})

    def told() -> str | None:
        jobs = [queue.get(job.id)]
        return waiting_for(engine, jobs, lease_seconds=0.6).get(job.id)

    assert told() == "No worker runs; start one with `gaitid worker`."
    with Presence(engine, {"memory": 8.0}, lease_seconds=0.6):
        until(lambda: "needs: gpu=1 memory=64" in (told() or ""), "a worker that does not fit")
        with Presence(engine, {"gpu": 1.0, "memory": 64.0}, lease_seconds=0.6):
            until(lambda: told() is None, "one that does")
            until(lambda: len(living_workers(engine, lease_seconds=0.6)) == 2, "both")
        assert told() is not None
    assert living_workers(engine, lease_seconds=0.6) == []  # an end is told


def test_a_worker_that_gives_no_sign_of_life_is_taken_for_dead(engine: Engine) -> None:
    silent = Presence(engine, {"gpu": 1.0}, lease_seconds=30)
    silent._say()
    assert [one.labels for one in living_workers(engine, lease_seconds=30)] == [{"gpu": 1.0}]
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE worker SET seen_at = '2020-01-01 00:00:00'"))
    assert living_workers(engine, lease_seconds=30) == []
    silent._say()  # it was only paused
    assert len(living_workers(engine, lease_seconds=30)) == 1
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE worker SET seen_at = '2020-01-01 00:00:00'"))
    Presence(engine, {}, lease_seconds=30)._say()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM worker")).scalar_one() == 1


def test_metrics_count_the_workers_that_live_and_outlive_the_database(
    serve: Serve, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve()
    assert "gaitid_workers 0.0" in client.get("/metrics").text
    with Presence(engine, {}, lease_seconds=30):
        until(lambda: "gaitid_workers 1.0" in client.get("/metrics").text, "it is counted")

    def away(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", None, Exception("away"))

    monkeypatch.setattr("service.http.routes.health.living_workers", away)
    text_of = client.get("/metrics").text
    assert "gaitid_workers NaN" in text_of
    assert "gaitid_ready 1.0" in text_of


def test_a_job_over_http_says_what_it_needs_and_waits_for(serve: Serve) -> None:
    client = serve()
    body = {
        "model": "default", "dataset": {"gallery": "default"}, "needs": {"gpu": 2, "memory": 64.5},
    }  # fmt: skip
    job = client.post("/jobs/evaluate", json=body).json()
    assert job["needs"] == {"gpu": 2.0, "memory": 64.5}
    seen = client.get(f"/jobs/{job['id']}").json()
    assert seen["status"] == "queued"
    assert seen["waiting_for"] == "No worker runs; start one with `gaitid worker`."
    assert client.get("/jobs").json()["items"][0]["waiting_for"] == seen["waiting_for"]
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.get(f"/jobs/{job['id']}").json()["waiting_for"] is None


@pytest.mark.parametrize("wrong", [{"GPU": 1}, {"gpu": -1}, {"gpu": "2"}, {"gpu": True}, ["gpu"]])
def test_needs_that_are_no_labels_are_refused(shared: httpx.Client, wrong: object) -> None:
    body = {"model": "default", "dataset": {"gallery": "default"}, "needs": wrong}
    reasons = problem(shared.post("/jobs/evaluate", json=body), 422)["errors"]
    assert all(reason["where"].startswith("needs") for reason in reasons)


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", {"gpu": 1.0}), ("auto", {}), ("cpu", {})]
)
def test_the_runs_of_a_deployment_that_must_have_a_gpu_need_one(
    settings: Settings, engine: Engine, queue: JobQueue, device: str, expected: dict[str, float]
) -> None:
    GalleryStore(engine).ensure("default")
    mine = settings.model_copy(update={"device": device})
    submission = Submission(mine, engine, queue, lambda _: ())
    evaluation = EvaluateRequest(model="default", dataset=GalleryDataset(gallery="default"))
    assert submission.submit(evaluation).needs == expected
    assert submission.submit(CalibrateRequest()).needs == {}


def test_a_recipe_says_what_its_run_needs(settings: Settings, tmp_path: Path) -> None:
    mine = settings.model_copy(update={"recipes_dir": tmp_path})
    (tmp_path / "large.toml").write_text('like = "demo"\n[needs]\ngpu = 1\nmemory = 48.5\n')
    (tmp_path / "again.toml").write_text('like = "large"\n')
    (tmp_path / "demo.toml").write_text("steps = 1\n")
    (tmp_path / "plain.toml").write_text('like = "demo"\n')
    assert recipe_needs(mine, "large") == {"gpu": 1.0, "memory": 48.5}
    assert recipe_needs(mine, "again") == {"gpu": 1.0, "memory": 48.5}
    assert recipe_needs(mine, "plain") == {}
    # The training program knows the key, and it changes nothing of a run.
    arguments = {"dataset": tmp_path, "teachers": [tmp_path]}
    with_needs = load(str(tmp_path / "large.toml"), **arguments)  # type: ignore[arg-type]
    without = load("demo", **arguments)  # type: ignore[arg-type]
    assert with_needs.needs == {"gpu": 1.0, "memory": 48.5}
    assert with_needs.model_dump() == without.model_dump()

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI
from sqlalchemy import Engine

from service.access.audit.record import AuditRecord
from service.client import Client, JobEvent
from service.foundation.errors import Reason
from service.foundation.settings import Settings
from service.gallery.listing import is_enrolled
from service.http import problems
from service.http.listening import listen, url_of
from service.http.routes import jobs, models
from service.http.routes.known_fields import only_known_fields
from service.job_types.evaluation import EvaluateJob
from service.jobs.event_streams import EventStreams
from service.jobs.events import Progress, Start
from service.jobs.queue import JobQueue
from service.serving.registry import ModelRegistry
from tests.e2e.deployment import until
from tests.service.jobs.workers import leased
from training.cli.evaluating import chosen_protocol
from training.evaluation import own_protocol
from training.evaluation.protocols import NamedProtocol

GOOD = {"recipe": "demo", "name": "mine", "dataset": "walks", "teachers": ["big"]}
CARD = {
    "name": "big", "architecture": "gaitbase", "config": {}, "metric": "cosine", "parts": 1,
    "channels": 1, "identities": 0, "digest": "d" * 64, "metrics": {"rank1": 0.9},
}  # fmt: skip


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve the application on a free loopback port; yields its URL."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield url_of("127.0.0.1", listener)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class FakeCheck:
    """Stands in for the training program; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []
        self.answer: list[Reason] = []

    def __call__(self, arguments: Sequence[str]) -> Sequence[Reason]:
        self.asked.append(arguments)
        return self.answer


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(
        data_dir=tmp_path / "data",
        shipped_models_dir=tmp_path / "shipped",
        recipes_dir=tmp_path / "recipes",
    )
    settings.recipes_dir.mkdir()
    (settings.recipes_dir / "demo.toml").write_text("steps = 1\n")
    (settings.recipes_dir / "render-test.toml").write_text("identities = 1\n")
    (tmp_path / "outside.toml").write_text("steps = 1\n")
    for model in (settings.shipped_models_dir / "big", settings.models_dir / "other"):
        model.mkdir(parents=True)
        (model / "card.json").write_text(json.dumps({**CARD, "name": model.name}))
    (settings.datasets_dir / "walks.pack").mkdir(parents=True)
    (settings.datasets_dir / "walks.pack" / "index.json").write_text("{}")
    return settings


@pytest.fixture
def check() -> FakeCheck:
    return FakeCheck()


@pytest.fixture
def http(settings: Settings, engine: Engine, check: FakeCheck) -> Iterator[httpx.Client]:
    app = FastAPI(dependencies=[Depends(only_known_fields)])
    problems.install(app)
    app.include_router(jobs.router)
    app.include_router(models.router)
    audit = AuditRecord(settings, partial(is_enrolled, engine))
    app.state.resources = SimpleNamespace(
        engine=engine,
        settings=settings,
        registry=ModelRegistry(settings, engine),
        audit=audit,
        followers=EventStreams(
            JobQueue.of(engine, settings), most=3, most_per_caller=2, poll_s=0.05
        ),
    )
    app.dependency_overrides[jobs.recipe_check] = lambda: check
    with closing(audit), listening(app) as url, httpx.Client(base_url=url) as client:
        yield client


def refused(http: httpx.Client, path: str, body: Any, status: int) -> dict[str, Any]:
    """The problem that a request is answered with; nothing was queued."""
    before = http.get("/jobs").json()
    # escaped, so that half of a surrogate pair can be sent
    answer = http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert http.get("/jobs").json() == before
    problem: dict[str, Any] = answer.json()
    assert problem["detail"]
    return problem


def where(problem: dict[str, Any]) -> list[str]:
    return [error["where"] for error in problem["errors"]]


def test_a_distillation_is_queued_and_its_location_answers(
    http: httpx.Client, check: FakeCheck, settings: Settings
) -> None:
    body = {**GOOD, "overrides": {"steps": 20, "batch.subjects": 4, "description": 'a "b"'}}
    answer = http.post("/jobs/distill", json=body)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert (job["type"], job["status"]) == ("distill", "queued")
    assert job["progress"] == {"fraction": 0.0, "step": 0, "total_steps": None, "eta_s": None}
    assert (job["metrics"], job["result"], job["error"]) == ({}, None, None)
    assert job["created_at"].endswith("Z")
    waiting = {"waiting_for": "No worker runs; start one with `gaitid worker`."}
    assert http.get(answer.headers["location"]).json() == job | waiting
    (arguments,) = check.asked
    assert arguments[0] == str(settings.recipes_dir / "demo.toml")
    assert "batch.subjects=4" in arguments
    assert 'description="a \\"b\\""' in arguments


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"recipe": "missing"}, 404, "recipe"),
        ({"recipe": "render-test"}, 404, "recipe"),
        ({"recipe": "../outside"}, 422, "recipe"),
        ({"recipe": "demo.toml/../../outside"}, 422, "recipe"),
        ({"recipe": "/etc/passwd"}, 422, "recipe"),
        ({"dataset": "missing"}, 404, "dataset"),
        ({"dataset": ".."}, 422, "dataset.pack"),
        ({"dataset": {"gallery": "missing"}}, 404, "gallery"),
        ({"dataset": {"gallery": "default", "pack": "x"}}, 422, "dataset.gallery.pack"),
        ({"dataset": 5}, 422, "dataset.gallery"),
        ({"teachers": ["big", "missing"]}, 404, "teachers[1]"),
        ({"teachers": ["../shipped/big"]}, 422, "teachers[0]"),
        ({"teachers": ["big"] * 9}, 422, "teachers"),
        ({"student": "missing"}, 404, "student"),
        ({"name": "a/b"}, 422, "name"),
        ({"name": ""}, 422, "name"),
        ({"name": "big"}, 409, "name"),
        ({"name": "other"}, 409, "name"),
        ({"activate": "always"}, 422, "activate"),
        ({"activate": "if_better", "gallery": "none"}, 404, "gallery"),
        ({"surprise": 1}, 422, "surprise"),
        ({"overrides": {"data.dataset": "/etc"}}, 422, "overrides.data.dataset.[key]"),
        (
            {"overrides": {"teachers.0.checkpoint": "/etc"}},
            422,
            "overrides.teachers.0.checkpoint.[key]",
        ),
        (
            {"overrides": {"stages.0.dataset": "/etc"}},
            422,
            "overrides.stages.0.dataset.[key]",
        ),
        ({"overrides": {"stages": ["/etc"]}}, 422, "overrides.stages.[key]"),
        ({"overrides": {"steps = 3": 1}}, 422, "overrides.steps = 3.[key]"),
        ({"overrides": {"student": {"checkpoint": "/etc"}}}, 422, "overrides.student"),
        ({"overrides": {"description": "half of a pair: \ud800"}}, 422, "overrides.description"),
        ({"overrides": {"description": "no\0thing"}}, 422, "overrides.description"),
        ({"overrides": {"description": ["fine", "\udfff"]}}, 422, "overrides.description"),
        ({"overrides": {"\ud800": 1}}, 422, "overrides.\ufffd\ufffd\ufffd.[key]"),
        ({"name": "\ud800"}, 422, "name"),
        ({"dataset": {"gallery": "\ud800"}}, 422, "dataset.gallery.gallery"),
    ],
)
def test_what_cannot_run_is_refused_by_name(
    http: httpx.Client, change: dict[str, Any], status: int, field: str
) -> None:
    problem = refused(http, "/jobs/distill", {**GOOD, **change}, status)
    assert where(problem) == [field]


def test_a_recipe_that_is_not_there_is_answered_with_those_for_training(http: httpx.Client) -> None:
    problem = refused(http, "/jobs/distill", {**GOOD, "recipe": "missing"}, 404)
    assert problem["detail"] == "There is no recipe 'missing'. There are: demo."


def test_overrides_that_the_recipe_refuses_name_their_keys(
    http: httpx.Client, check: FakeCheck
) -> None:
    check.answer = [
        Reason("step", "no such key"),
        Reason("shedule", "no such key"),
        Reason("terms", "Field required"),
        Reason("data.dataset", "there is no packed dataset"),
        Reason("student.config.channels.2", "Field required"),
        Reason("", "schedule.warm_up must be shorter than the run"),
    ]
    overrides = {"step": 5, "shedule.warm_up": 1, "student.config.channels": [1, 2]}
    body = {**GOOD, "overrides": overrides}
    problem = refused(http, "/jobs/distill", body, 422)
    assert where(problem) == [
        "overrides.step",
        "overrides.shedule.warm_up",
        "recipe.terms",
        "recipe.data.dataset",
        "overrides.student.config.channels",
        "recipe",
    ]


def test_a_gallery_takes_the_place_of_the_recipes_own_dataset(
    http: httpx.Client, check: FakeCheck
) -> None:
    check.answer = [Reason("data.dataset", "there is no packed dataset")]
    body = {**GOOD, "dataset": {"gallery": "default"}}
    assert http.post("/jobs/distill", json=body).status_code == 202
    assert "--dataset" not in check.asked[0]


def test_two_unfinished_jobs_never_make_one_model(http: httpx.Client) -> None:
    first = http.post("/jobs/distill", json=GOOD).json()
    refused(http, "/jobs/distill", GOOD, 409)
    http.post(f"/jobs/{first['id']}/cancel")
    assert http.post("/jobs/distill", json=GOOD).status_code == 202


def test_an_evaluation_is_queued_and_refused_alike(http: httpx.Client) -> None:
    good = {"model": "big", "dataset": "walks", "protocol": "nine-pairs"}
    assert http.post("/jobs/evaluate", json=good).status_code == 202
    assert where(refused(http, "/jobs/evaluate", {**good, "model": "x"}, 404)) == ["model"]
    assert where(refused(http, "/jobs/evaluate", {**good, "dataset": "x"}, 404)) == ["dataset"]
    assert where(refused(http, "/jobs/evaluate", {**good, "protocol": "x"}, 422)) == ["protocol"]


OWN: dict[str, Any] = {
    "enrolled": ["nm-0[1-4]"],
    "asked": {"NM": ["nm-05", "nm-06"], "coat": ["cl-*"]},
}


def test_an_evaluation_by_conditions_of_ones_own_is_asked_of_the_training_program(
    http: httpx.Client, settings: Settings, engine: Engine
) -> None:
    asking = {"model": "big", "dataset": "walks", "conditions": {**OWN, "apart": 15.5}}
    job = JobQueue.of(engine, settings).get(http.post("/jobs/evaluate", json=asking).json()["id"])
    (step,) = EvaluateJob(settings, engine).steps(job, settings.jobs_dir / job.id)
    given = dict(word.removeprefix("--").split("=", 1) for word in step.command if "=" in word)
    asked = [word.removeprefix("--asked=") for word in step.command if "--asked" in word]
    assert "--protocol" not in step.command
    found = chosen_protocol(None, [given["enrolled"]], asked, float(given["apart"]))
    wanted = own_protocol(["nm-0[1-4]"], {"NM": ["nm-05", "nm-06"], "coat": ["cl-*"]}, 15.5)
    assert isinstance(found, NamedProtocol)
    assert found.name == wanted.name


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"conditions": {**OWN, "enrolled": []}}, "conditions.enrolled"),
        ({"conditions": {"enrolled": ["nm-01"]}}, "conditions.asked"),
        ({"conditions": {**OWN, "asked": {}}}, "conditions.asked"),
        ({"conditions": {**OWN, "asked": {"a=b": ["nm"]}}}, "conditions.asked"),
        ({"conditions": {**OWN, "enrolled": ["nm-01,nm-02"]}}, "conditions.enrolled"),
        ({"conditions": {**OWN, "enrolled": ["nm\x00"]}}, "conditions.enrolled"),
        ({"conditions": {**OWN, "enrolled": ["nm\ud800"]}}, "conditions.enrolled"),
        ({"conditions": {**OWN, "apart": -1}}, "conditions.apart"),
        ({"conditions": {**OWN, "colour": "red"}}, "conditions.colour"),
        ({"conditions": OWN, "protocol": "casia-b"}, ""),
    ],
)
def test_conditions_that_the_training_program_could_not_read_are_refused(
    http: httpx.Client, change: dict[str, Any], place: str
) -> None:
    problem = refused(http, "/jobs/evaluate", {"model": "big", "dataset": "walks", **change}, 422)
    assert any(found.startswith(place) for found in where(problem)), problem


@pytest.mark.parametrize("kind", ["calibrate", "reindex", "audit-gallery"])
def test_a_job_whose_fields_all_have_defaults_needs_no_body(http: httpx.Client, kind: str) -> None:
    answer = http.post(f"/jobs/{kind}")
    assert (answer.status_code, answer.json()["type"]) == (202, kind)


@pytest.mark.parametrize("kind", ["activate", "anything"])
def test_job_types_that_are_not_there_are_not_found(http: httpx.Client, kind: str) -> None:
    assert http.post(f"/jobs/{kind}", json={}).status_code in (404, 405)


def test_jobs_are_listed_newest_first_by_status_in_pages(
    http: httpx.Client, queue: JobQueue
) -> None:
    ids = [queue.enqueue("evaluate", {}).id for _ in range(3)]
    queue.cancel(ids[1])
    first = http.get("/jobs", params={"limit": 2}).json()
    second = http.get("/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["items"] + second["items"]] == ids[::-1]
    assert second["next_cursor"] is None
    cancelled = http.get("/jobs", params={"status": "cancelled"}).json()["items"]
    assert [job["id"] for job in cancelled] == [ids[1]]
    for wrong in ({"status": "done"}, {"limit": 0}, {"cursor": "???"}, {"stat": "queued"}):
        assert http.get("/jobs", params=wrong).status_code == 422


def test_cancelling_answers_how_the_job_stands(http: httpx.Client, queue: JobQueue) -> None:
    job = queue.enqueue("evaluate", {})
    assert http.post(f"/jobs/{job.id}/cancel").json()["status"] == "cancelled"
    failed = queue.enqueue("evaluate", {})
    lease = leased(queue)
    assert http.post(f"/jobs/{failed.id}/cancel").json()["status"] == "cancelling"
    queue.fail(lease, "because")
    ended = http.post(f"/jobs/{failed.id}/cancel")
    assert (ended.status_code, where(ended.json())) == (409, ["job_id"])
    assert http.get(f"/jobs/{failed.id}").json()["error"] == "because"
    for path in ("/jobs/nope", "/jobs/nope/events"):
        missing = http.get(path)
        assert (missing.status_code, where(missing.json())) == (404, ["job_id"])
    assert http.post("/jobs/nope/cancel").status_code == 404


def followed(http: httpx.Client, job_id: str, after: int = 0) -> list[JobEvent]:
    with Client(str(http.base_url)) as client:
        return list(client.follow(job_id, after=after))


def test_events_stream_as_they_happen_and_end_with_the_job(
    http: httpx.Client, queue: JobQueue
) -> None:
    job = queue.enqueue("evaluate", {})

    def work() -> None:
        lease = leased(queue)
        queue.begin(lease)
        queue.record(lease, [Start(event="start", total_steps=2)])
        time.sleep(0.5)
        queue.record(lease, [Progress(event="progress", step=1, total_steps=2)])
        queue.succeed(lease, {"model": "m"})

    thread = threading.Thread(target=work)
    thread.start()
    events = followed(http, job.id)
    thread.join()
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert [event.kind for event in events] == ["status", "status", "start", "progress", "status"]
    assert events[-1].data["status"] == "succeeded"
    assert events[-1].data["result"] == {"model": "m"}


def test_a_stream_that_broke_goes_on_after_the_last_event_seen(
    http: httpx.Client, queue: JobQueue
) -> None:
    job = queue.enqueue("evaluate", {})
    lease = leased(queue)
    queue.begin(lease)
    queue.record(lease, [Start(event="start", total_steps=2)])
    queue.succeed(lease, {})
    assert [event.sequence for event in followed(http, job.id, after=2)] == [3, 4]
    seen_all = http.get(f"/jobs/{job.id}/events", headers={"Last-Event-ID": "4"})
    assert seen_all.status_code == 204  # tells an EventSource to stop
    assert http.get(f"/jobs/{job.id}/events", headers={"Last-Event-ID": "x"}).status_code == 400
    far = http.get(f"/jobs/{job.id}/events", headers={"Last-Event-ID": "9" * 10})
    assert far.status_code == 204


def test_a_stream_beyond_what_a_caller_may_have_is_refused_until_one_ends(
    http: httpx.Client, queue: JobQueue
) -> None:
    job = queue.enqueue("evaluate", {})
    path = f"/jobs/{job.id}/events"
    with http.stream("GET", path) as first, http.stream("GET", path) as second:
        assert (first.status_code, second.status_code) == (200, 200)
        refusal = http.get(path)
        assert (refusal.status_code, refusal.json()["type"]) == (503, "/problems/too-many-streams")
        assert int(refusal.headers["retry-after"]) > 0
        assert http.get(f"/jobs/{job.id}").status_code == 200
    queue.cancel(job.id)
    until(lambda: http.get(path).status_code == 200, "streams may be opened again")


def test_a_stream_after_an_event_that_never_was_ends_with_the_job(
    http: httpx.Client, queue: JobQueue
) -> None:
    job = queue.enqueue("evaluate", {})
    headers = {"Last-Event-ID": "99"}
    with http.stream("GET", f"/jobs/{job.id}/events", headers=headers, timeout=3.0) as stream:
        assert stream.status_code == 200
        queue.cancel(job.id)
        assert "data:" not in stream.read().decode()


def test_models_are_listed_and_shown_without_their_folders(
    http: httpx.Client, settings: Settings
) -> None:
    listed = http.get("/models").json()["items"]
    assert [(model["name"], model["source"]) for model in listed] == [
        ("big", "shipped"),
        ("other", "imported"),
    ]
    shown = http.get("/models/big").json()
    assert shown["digest"] == "d" * 64
    assert shown["metrics"] == {"rank1": 0.9}
    assert shown["card"]["name"] == "big"
    assert str(settings.data_dir.parent) not in http.get("/models").text
    for missing in ("nope", "..", ".hidden"):
        assert http.get(f"/models/{missing}").status_code == 404

"""Jobs behind the application's own layers: keys, problems, idempotency, the API's description."""

import httpx
import pytest

EVALUATION = {"model": "default", "dataset": {"gallery": "default"}}


def test_a_retried_request_for_a_job_queues_one_job(shared: httpx.Client) -> None:
    headers = {"Idempotency-Key": "evaluate-once"}
    first = shared.post("/jobs/evaluate", json=EVALUATION, headers=headers)
    again = shared.post("/jobs/evaluate", json=EVALUATION, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    ids = [job["id"] for job in shared.get("/jobs").json()["items"]]
    assert ids.count(first.json()["id"]) == 1


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/jobs/distill", {"recipe": "demo"}, 422),
        ("/jobs/evaluate", {**EVALUATION, "colour": "red"}, 422),
        ("/jobs/evaluate", {**EVALUATION, "model": "nope"}, 404),
        ("/jobs/evaluate", ["not", "an", "object"], 422),
    ],
)
def test_refusals_are_problem_documents(
    shared: httpx.Client, path: str, body: object, status: int
) -> None:
    answer = shared.post(path, json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"]


def test_a_recipe_without_a_teachers_term_is_refused_before_it_is_queued(
    shared: httpx.Client,
) -> None:
    body = {
        "recipe": "student-baseline",
        "name": "mine",
        "dataset": {"gallery": "default"},
        "teachers": ["default"],
    }
    answer = shared.post("/jobs/distill", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["where"] == "recipe.terms"
    assert "no term has a teacher" in error["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("student.architecture", "os.system", "known: deepgaitv2, gaitbase"),
        ("evaluation.protocol", "../x", "known: auto, casia-b"),
    ],
)
def test_an_override_that_no_training_could_run_is_refused_by_the_training_program(
    shared: httpx.Client, key: str, value: object, says: str
) -> None:
    body = {
        "recipe": "demo",
        "name": "mine",
        "dataset": {"gallery": "default"},
        "teachers": ["default"],
        "overrides": {key: value},
    }
    answer = shared.post("/jobs/distill", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["where"] == f"overrides.{key}"
    assert says in error["reason"]


def test_a_body_that_is_not_json_is_malformed(shared: httpx.Client) -> None:
    answer = shared.post(
        "/jobs/distill", content=b"{", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400


def test_the_description_of_the_api_has_every_route_of_jobs_and_models(
    shared: httpx.Client,
) -> None:
    paths = shared.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith(("/jobs", "/models"))} == {
        "/jobs",
        "/jobs/adapt",
        "/jobs/audit-gallery",
        "/jobs/calibrate",
        "/jobs/distill",
        "/jobs/evaluate",
        "/jobs/footage",
        "/jobs/reindex",
        "/jobs/{job_id}",
        "/jobs/{job_id}/cancel",
        "/jobs/{job_id}/events",
        "/models",
        "/models/rollback",
        "/models/{name}",
        "/models/{name}/activate",
    }

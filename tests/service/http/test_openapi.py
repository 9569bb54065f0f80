"""What the OpenAPI document says beside what the framework knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.requests import enrol
from tests.service.walkers import walk


@pytest.fixture(scope="module")
def document(shared: httpx.Client) -> dict[str, Any]:
    content: dict[str, Any] = shared.get("/openapi.json").json()
    return content


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def test_no_two_operations_share_an_id(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_every_operation_but_health_asks_for_a_key(document: dict[str, Any]) -> None:
    unguarded = {
        path
        for path, methods in document["paths"].items()
        for operation in methods.values()
        if "security" not in operation
    }
    assert unguarded == {"/healthz", "/readyz", "/metrics"}


def test_nothing_in_a_form_or_an_address_can_be_null(document: dict[str, Any]) -> None:
    forms = [
        schema for name, schema in document["components"]["schemas"].items() if "Body_" in name
    ]
    fields = [field for form in forms for field in form["properties"].values()]
    for operation in operations(document):
        fields += [item["schema"] for item in operation.get("parameters", [])]
    assert len(forms) >= 3
    assert not [field for field in fields if {"type": "null"} in field.get("anyOf", [])]
    assert all(form["additionalProperties"] is False for form in forms)


@pytest.mark.parametrize(
    ("method", "path", "template", "status"),
    [
        ("POST", "/enroll", "/enroll", 422),
        ("POST", "/galleries", "/galleries", 400),
        ("GET", "/galleries/none", "/galleries/{gallery}", 404),
        ("GET", "/healthz?colour=red", "/healthz", 422),
        ("PUT", "/galleries/copy/import", "/galleries/{gallery}/import", 400),
        ("DELETE", "/models/default", "/models/{name}", 409),
        ("GET", "/jobs/none/events", "/jobs/{job_id}/events", 404),
    ],
)
def test_the_problems_that_a_call_may_answer_with_are_listed(
    shared: httpx.Client,
    document: dict[str, Any],
    method: str,
    path: str,
    template: str,
    status: int,
) -> None:
    headers = {"Content-Type": "application/json"} if status == 400 else {}
    answer = shared.request(method, path, headers=headers, content=b"{" if status == 400 else b"")
    assert answer.status_code == status
    listed = document["paths"][template][method.lower()]["responses"][str(status)]
    problem = document["components"]["responses"][listed["$ref"].rpartition("/")[2]]
    assert answer.headers["content-type"] in problem["content"]


def test_calls_that_take_keys_and_files_list_what_those_are_refused_with(
    document: dict[str, Any],
) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            listed = set(operation["responses"])
            assert ("security" in operation) == ({"401", "403", "429"} <= listed), (method, path)
            assert ("requestBody" in operation) == ({"413", "415"} <= listed), (method, path)


def test_every_post_and_nothing_else_takes_an_idempotency_key(document: dict[str, Any]) -> None:
    for methods in document["paths"].values():
        for method, operation in methods.items():
            taken = {item["name"] for item in operation.get("parameters", [])}
            assert ("Idempotency-Key" in taken) == (method == "post")


def test_answers_carry_the_headers_and_types_that_are_described(
    shared: httpx.Client, document: dict[str, Any]
) -> None:
    def described(path: str, method: str, answer: httpx.Response) -> dict[str, Any]:
        found: dict[str, Any] = document["paths"][path][method]["responses"][
            str(answer.status_code)
        ]
        return found

    made = shared.post("/galleries", json={"name": "described"})
    queued = shared.post("/jobs/reindex", json={"gallery": "described"})
    for path, answer in (("/galleries", made), ("/jobs/reindex", queued)):
        assert set(described(path, "post", answer)["headers"]) == {"Location"}
        assert shared.get(answer.headers["Location"]).status_code == 200
    metrics = shared.get("/metrics")
    (kind,) = described("/metrics", "get", metrics)["content"]
    assert metrics.headers["content-type"].startswith(kind + ";")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/galleries", "GET, HEAD, POST"),
        ("/galleries/lab", "DELETE, GET, HEAD, PATCH"),
        ("/subjects/anna", "DELETE, GET, HEAD, PATCH"),
        ("/jobs", "GET, HEAD"),
        ("/jobs/distill", "POST"),
        ("/enroll", "POST"),
    ],
)
def test_a_wrong_method_is_told_every_right_one(
    shared: httpx.Client, path: str, allowed: str
) -> None:
    answer = shared.request("OPTIONS", path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("number", ["1e300", "-9007199254740994.0", "9007199254740993"])
def test_a_number_that_not_every_reader_keeps_is_refused(shared: httpx.Client, number: str) -> None:
    content = f'{{"name": "numbers", "metadata": {{"n": {number}}}}}'
    answer = shared.post(
        "/galleries", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == "metadata.n"


def test_a_walk_whose_sequence_was_erased_is_enrolled_again_with_its_key(
    shared: httpx.Client,
) -> None:
    shared.post("/galleries", json={"name": "again"}).raise_for_status()
    enrol(shared, "anna", walk(1), gallery="again").raise_for_status()

    def send() -> httpx.Response:
        return shared.post(
            "/enroll",
            data={"subject_id": "anna", "gallery": "again"},
            files={"sequence": ("walk.npz", walk(2))},
            headers={"Idempotency-Key": "walk-2"},
        )

    first = send().json()["sequences"][0]["sequence_id"]
    assert send().headers["Idempotency-Replayed"] == "true"
    shared.delete(f"/sequences/{first}").raise_for_status()
    again = send()
    assert "Idempotency-Replayed" not in again.headers
    assert shared.get("/galleries/again").json()["sequences"] == 2

"""The client has every call of the interface, and asks and understands what the service does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import httpx
import pytest
from pydantic import BaseModel

from service.client import Client, NotFound, UnexpectedAnswer, UnusableName
from service.client.answers import Answer, JobEvent, Page
from service.foundation.settings import Settings
from service.http.app import create_app
from tests.service.client.answering import Script, client, problem

WALK = ("walk.npz", b"walk")
HERE = Path(__file__)
ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "enroll": (("anna", [WALK]), {"metadata": {"view": "090"}}),
    "identify": (
        (WALK,),
        {
            "filter": {"view": ["000"]},
            "threshold": 0.5,
            "explain": True,
            "include": "metadata",
            "galleries": ["default", "lab"],
        },
    ),
    "verify": (("anna", WALK), {"threshold": 0.5, "include": "metadata"}),
    "galleries": ((), {}),
    "gallery": (("lab",), {}),
    "create_gallery": (("lab",), {}),
    "change_gallery": (("lab",), {"max_age_days": 30}),
    "add_to_cohort": (("lab", [WALK]), {}),
    "forget_cohort": (("lab",), {}),
    "export_gallery": (("lab", HERE.with_name("never.zip")), {}),
    "import_gallery": ((HERE, "lab"), {}),
    "erase_gallery": (("lab",), {}),
    "subjects": ((), {}),
    "subject": (("anna",), {}),
    "edit_subject": (
        ("anna",),
        {"display_name": "Anna", "metadata": {"team": "B"}, "merge_into": "bert", "new_id": "a"},
    ),
    "erase_subject": (("anna",), {}),
    "sequence": (("q1",), {}),
    "edit_sequence": (("q1",), {"metadata": {"view": "090"}, "subject_id": "bert"}),
    "silhouettes": (("q1",), {}),
    "film": (("q1",), {}),
    "energy_image": (("q1",), {}),
    "erase_sequence": (("q1",), {}),
    "distill": (
        (),
        {
            "recipe": "demo",
            "name": "m",
            "dataset": "d",
            "teachers": ["t"],
            "overrides": {"steps": 2},
            "activate": "if_better",
            "activate_in": "lab",
        },
    ),
    "evaluate": ((), {"model": "m", "dataset": "d"}),
    "calibrate": ((), {}),
    "adapt": ((), {}),
    "audit_gallery": ((), {}),
    "reindex": ((), {}),
    "footage": ((HERE,), {"filter": {"view": ["000"]}, "keep_minutes": 5}),
    "jobs": ((), {"status": "queued"}),
    "job": (("j1",), {}),
    "cancel": (("j1",), {}),
    "follow": (("j1",), {}),
    "models": ((), {}),
    "model": (("m",), {}),
    "upload_model": (("m",), {"weights": WALK, "card": ("card.json", b"{}")}),
    "remove_model": (("m",), {}),
    "activate": (("m",), {}),
    "rollback": ((), {}),
    "health": ((), {}),
    "readiness": ((), {}),
    "metrics": ((), {}),
    "audit": ((), {"gallery": "lab"}),
}
UNSTRUCTURED = {
    *("silhouettes", "film", "energy_image", "follow", "metrics"),
    *("audit", "export_gallery", "forget_cohort", "remove_model"),
}
"""Calls whose answers are no JSON object."""


@pytest.fixture(scope="module")
def interface(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The OpenAPI document."""
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("data"))).openapi()


def sent(name: str) -> httpx.Request:
    """The request of a call with the arguments above; of a list the first page's."""
    arguments, options = ARGUMENTS[name]
    script = Script(problem(404))
    with pytest.raises(NotFound):
        next(getattr(client(script), name)(*arguments, **options))
    (request,) = script.requests
    return request


def fields_of(request: httpx.Request) -> set[str]:
    """Names of the fields of a JSON object or a form."""
    match request.headers.get("Content-Type", "").partition(";")[0]:
        case "application/json":
            return set(json.loads(request.content))
        case "multipart/form-data":
            return {name.decode() for name in re.findall(rb'; name="(\w+)"', request.content)}
    return set()


def answer_of(name: str) -> type[BaseModel] | None:
    """The record that a call's JSON is read as."""
    kind = get_type_hints(getattr(Client, name))["return"]
    if get_origin(kind) is Iterator:
        (item,) = get_args(kind)
        paged = issubclass(item, Answer) and item is not JobEvent
        return Page[item] if paged else None  # type: ignore[valid-type]
    return kind if issubclass(kind, BaseModel) else None


def operation(interface: dict[str, Any], request: httpx.Request) -> tuple[str, dict[str, Any]]:
    """The template of a request's path, and what the document says of it."""
    method = request.method.lower()
    found = [
        (path, operations[method])
        for path, operations in interface["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), request.url.path)
        and method in operations
    ]
    return min(found, key=lambda pair: pair[0].count("{"))


def test_the_arguments_of_these_tests_are_for_every_call() -> None:
    assert set(ARGUMENTS) == {name for name in vars(Client) if not name.startswith("_")}


def test_the_client_has_every_call_of_the_interface(interface: dict[str, Any]) -> None:
    requests = map(sent, ARGUMENTS)
    assert {(request.method, operation(interface, request)[0]) for request in requests} == {
        (method.upper(), path)
        for path, operations in interface["paths"].items()
        for method in operations
    }


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_call_is_one_of_the_interface_with_fields_that_it_takes(
    interface: dict[str, Any], name: str
) -> None:
    request = sent(name)
    _, documented = operation(interface, request)
    parameters = {item["name"] for item in documented.get("parameters", ())}
    assert set(request.url.params) <= parameters
    bodies = documented.get("requestBody", {"content": {}})["content"].values()
    schemas = [resolved(interface, body) for body in bodies]
    taken = {field for schema in schemas for field in schema.get("properties", {})}
    required = {field for schema in schemas for field in schema.get("required", ())}
    assert required <= fields_of(request) <= taken
    changes = request.method == "POST" and name not in ("identify", "verify")  # searches
    assert ("Idempotency-Key" in request.headers) == changes


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_answer_has_the_fields_that_the_interface_says(
    interface: dict[str, Any], name: str
) -> None:
    kind = answer_of(name)
    assert (kind is None) == (name in UNSTRUCTURED)
    if kind is not None:
        responses = operation(interface, sent(name))[1]["responses"].items()
        success = next(answer for status, answer in responses if status[0] == "2")
        compare(interface, kind, success["content"]["application/json"], name)


def compare(interface: dict[str, Any], kind: type[BaseModel], body: Any, where: str) -> None:
    properties = resolved(interface, body)["properties"]
    ours = {name for name, field in kind.model_fields.items() if field.is_required()}
    assert ours <= set(properties) <= set(kind.model_fields), where
    for name, field in kind.model_fields.items():
        inner = model_within(field.annotation)
        if inner is not None and name in properties:
            schema = properties[name]
            compare(interface, inner, schema.get("items", schema), f"{where}.{name}")


def model_within(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (list, types.UnionType):
        return next(filter(None, map(model_within, get_args(annotation))), None)
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def resolved(interface: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    schema = body.get("schema", body)
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:  # what may be left out, or null
        (schema,) = choices
    if "$ref" in schema:
        found: dict[str, Any] = interface["components"]["schemas"][schema["$ref"].split("/")[-1]]
        return found
    return dict(schema)


def page(*names: str, next_cursor: str | None) -> httpx.Response:
    items = [
        {"subject_id": name, "gallery": "g", "sequences": 1, "created_at": "2026-11-22T10:55:57Z"}
        for name in names
    ]
    return httpx.Response(200, json={"items": items, "next_cursor": next_cursor})


def test_a_list_is_read_page_by_page_as_it_is_needed() -> None:
    script = Script(
        page("a", "b", next_cursor="b="), page(next_cursor="c"), page("d", next_cursor=None)
    )
    listing = client(script).subjects(gallery="g")
    assert next(listing).subject_id == "a"
    assert len(script.requests) == 1
    assert [subject.subject_id for subject in listing] == ["b", "d"]
    assert [request.url.params.get("cursor") for request in script.requests] == [None, "b=", "c"]
    assert {request.url.params["gallery"] for request in script.requests} == {"g"}


@pytest.mark.parametrize("name", ["a/b", "..%2f..", "../galleries/default", "a?b#c", "ä ö"])
def test_a_name_never_leaves_its_place_in_the_address(name: str) -> None:
    script = Script(problem(404))
    with pytest.raises(NotFound):
        client(script).erase_subject(name)
    path = script.requests[0].url.raw_path.partition(b"?")[0]
    assert path.startswith(b"/subjects/")
    assert path.count(b"/") == 2
    assert script.requests[0].url.params == httpx.QueryParams({"gallery": "default"})


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_no_address_carries_is_refused_here(name: str) -> None:
    script = Script(problem(404))
    with pytest.raises(UnusableName, match="address"):
        client(script).erase_subject(name)
    assert script.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>hello</html>"),
        httpx.Response(200, json={"id": "j1"}),
        httpx.Response(301, headers={"Location": "http://elsewhere.test/"}),
    ],
)
def test_another_service_at_the_address_is_noticed(answer: httpx.Response) -> None:
    with pytest.raises(UnexpectedAnswer, match=r"http://gait\.test"):
        client(Script(answer)).job("j1")


def test_the_key_comes_from_the_argument_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GAITID_API_KEY", "gid_environment")
    sent = []
    for key in (None, "gid_argument", ""):
        script = Script(problem(404))
        with pytest.raises(NotFound):
            Client("http://gait.test", api_key=key, transport=script).job("j1")
        sent.append(script.requests[0].headers.get("Authorization"))
    assert sent == ["Bearer gid_environment", "Bearer gid_argument", None]


@pytest.mark.parametrize(
    "url",
    [
        *("http://[::1", "http://gait.test:port"),
        *("gait.test:8000", "127.0.0.1:8000", "", "http://", "ftp://gait.test"),
    ],
)
def test_an_address_that_is_none_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        Client(url)


def test_a_walk_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "walk.npz").write_bytes(b"silhouettes")
    script = Script(problem(404))
    with pytest.raises(NotFound):
        client(script).identify(tmp_path / "walk.npz")
    body = script.requests[0].content
    assert b'filename="walk.npz"' in body
    assert b"silhouettes" in body
    assert str(tmp_path).encode() not in body


def test_the_client_loads_nothing_of_the_service() -> None:
    script = (
        "import sys, json, service.client;"
        "print(json.dumps([name for name in sys.modules if name.split('.')[0] in"
        " ('torch', 'faiss', 'sqlalchemy', 'fastapi', 'numpy', 'models', 'training')"
        " or name.startswith('service.') and not name.startswith('service.client')]))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert json.loads(answer.stdout) == []

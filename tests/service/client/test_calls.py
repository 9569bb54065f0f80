"""The client has every call of the interface, and asks and understands what the service does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import anyio
import httpx
import pytest
from pydantic import BaseModel

from service.client import AsyncClient, Client, UnexpectedAnswer, UnusableName
from service.client.call import (
    Call,
    Download,
    Events,
    Lines,
    Pages,
    answered,
    at,
    lined,
    paged,
    saved,
    streamed,
)
from service.client.calls import Calls
from service.foundation.settings import Settings
from service.http.app import create_app
from tests.service.client.answering import Script, async_client, client, problem

WALK = ("walk.npz", b"walk")
HERE = Path(__file__)
ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "enroll": (("anna", [WALK]), {"metadata": {"view": "090"}}),
    "identify": (
        (WALK,),
        {"filter": {"view": ["000"]}, "threshold": 0.5, "explain": True, "display_names": True},
    ),
    "verify": (("anna", WALK), {"threshold": 0.5, "display_names": True}),
    "galleries": ((), {}),
    "gallery": (("lab",), {}),
    "create_gallery": (("lab",), {}),
    "change_gallery": (("lab",), {"max_age_days": 30}),
    "export_gallery": (("lab", HERE.with_name("never.zip")), {}),
    "import_gallery": ((HERE, "lab"), {}),
    "erase_gallery": (("lab",), {}),
    "subjects": ((), {}),
    "subject": (("anna",), {}),
    "edit_subject": (("anna",), {"display_name": "Anna", "new_id": "a"}),
    "merge_subjects": (("anna", "bert"), {}),
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
    "audit_gallery": ((), {}),
    "reindex": ((), {}),
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
    *("audit", "export_gallery", "remove_model"),
}
"""Calls whose answers are no JSON object."""


def described(name: str) -> Call[Any]:
    """The request of a call with the arguments above; of a list the first page's."""
    arguments, options = ARGUMENTS[name]
    found = vars(Calls)[name].describe(None, *arguments, **options)
    match found:
        case Pages():
            return found.call(None)
        case Events():
            path = at("/jobs/{}/events", found.job_id)
            return Call(method="GET", path=path, read=lambda answer: answer)
        case Lines() | Download():
            return Call(
                method="GET", path=found.path, query=found.query, read=lambda answer: answer
            )
    assert isinstance(found, Call)
    return found


@pytest.fixture(scope="module")
def interface(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The OpenAPI document."""
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("data"))).openapi()


def operation(interface: dict[str, Any], call: Call[Any]) -> tuple[str, dict[str, Any]] | None:
    """The template of the call's path, and what the document says of it."""
    found = [
        (path, operations[call.method.lower()])
        for path, operations in interface["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), call.path)
        and call.method.lower() in operations
    ]
    return min(found, key=lambda pair: pair[0].count("{")) if found else None


def test_the_arguments_of_these_tests_are_for_every_call() -> None:
    kinds = (answered, paged, streamed, lined, saved)
    assert set(ARGUMENTS) == {name for name, item in vars(Calls).items() if isinstance(item, kinds)}


def test_the_client_has_every_call_of_the_interface(interface: dict[str, Any]) -> None:
    known = {
        (call.method, found[0])
        for call in map(described, ARGUMENTS)
        if (found := operation(interface, call))
    }
    assert known == {
        (method.upper(), path)
        for path, operations in interface["paths"].items()
        for method in operations
    }


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_call_is_one_of_the_interface_with_fields_that_it_takes(
    interface: dict[str, Any], name: str
) -> None:
    call = described(name)
    found = operation(interface, call)
    assert found is not None
    _, documented = found
    parameters = {item["name"] for item in documented.get("parameters", ())}
    assert {name for name, value in call.query.items() if value is not None} <= parameters
    sent = {name for name, value in call.form.items() if value is not None}
    sent |= {name for name, _ in call.files} | set(call.json or ())
    bodies = documented.get("requestBody", {"content": {}})["content"].values()
    taken = {field for body in bodies for field in resolved(interface, body).get("properties", {})}
    assert sent <= taken
    required = {field for body in bodies for field in resolved(interface, body).get("required", [])}
    assert required <= sent


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_answer_has_the_fields_that_the_interface_says(
    interface: dict[str, Any], name: str
) -> None:
    call = described(name)
    found = operation(interface, call)
    kind = getattr(call.read, "__self__", None)
    assert found is not None
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        assert name in UNSTRUCTURED
        return
    success = next(answer for status, answer in found[1]["responses"].items() if status[0] == "2")
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


@pytest.mark.parametrize("name", ARGUMENTS)
def test_both_clients_send_the_same(name: str) -> None:
    arguments, options = ARGUMENTS[name]
    sync, awaited = Script(problem(404)), Script(problem(404))

    def send(calling: Client) -> None:
        answer = getattr(calling, name)(*arguments, **options)
        if isinstance(answer, Iterator):
            next(answer)

    async def send_async(calling: AsyncClient) -> None:
        answer = getattr(calling, name)(*arguments, **options)
        await (anext(answer) if hasattr(answer, "__anext__") else answer)

    with pytest.raises(Exception, match="Detail of"), client(sync) as calling:
        send(calling)

    async def run() -> None:
        async with async_client(awaited) as calling_async:
            await send_async(calling_async)

    with pytest.raises(Exception, match="Detail of"):
        anyio.run(run)
    (one,), (other,) = sync.requests, awaited.requests
    assert (one.method, one.url) == (other.method, other.url)
    assert without_boundary(one) == without_boundary(other)
    changes = one.method == "POST" and name not in ("identify", "verify")  # a search needs no key
    assert ("Idempotency-Key" in one.headers) == changes


def without_boundary(request: httpx.Request) -> bytes:
    boundary = request.headers.get("Content-Type", "").partition("boundary=")[2]
    return request.content.replace(boundary.encode(), b"") if boundary else request.content


def page(*names: str, next_cursor: str | None) -> httpx.Response:
    items = [
        {"subject_id": name, "gallery": "g", "sequences": 1, "created_at": "2026-11-22T10:55:57Z"}
        for name in names
    ]
    return httpx.Response(200, json={"items": items, "next_cursor": next_cursor})


PAGES: list[Callable[[], httpx.Response]] = [
    lambda: page("a", "b", next_cursor="b="),
    lambda: page(next_cursor="c"),
    lambda: page("d", next_cursor=None),
]


def test_a_list_is_read_page_by_page_as_it_is_needed() -> None:
    script = Script(*(make() for make in PAGES))
    listing = client(script).subjects(gallery="g")
    assert next(listing).subject_id == "a"
    assert len(script.requests) == 1
    assert [subject.subject_id for subject in listing] == ["b", "d"]
    assert [request.url.params.get("cursor") for request in script.requests] == [None, "b=", "c"]
    assert {request.url.params["gallery"] for request in script.requests} == {"g"}


def test_a_list_is_read_page_by_page_also_when_awaited() -> None:
    script = Script(*(make() for make in PAGES))

    async def read() -> list[str]:
        async with async_client(script) as calling:
            return [subject.subject_id async for subject in calling.subjects(gallery="g")]

    assert anyio.run(read) == ["a", "b", "d"]


@pytest.mark.parametrize("name", ["a/b", "..%2f..", "../galleries/default", "a?b#c", "ä ö"])
def test_a_name_never_leaves_its_place_in_the_address(name: str) -> None:
    script = Script(problem(404))
    with pytest.raises(Exception, match="Detail of"):
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
        with pytest.raises(Exception, match="Detail of"):
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
    with pytest.raises(Exception, match="Detail of"):
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

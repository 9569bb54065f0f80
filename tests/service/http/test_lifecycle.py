"""Start, restart, a replaced checkpoint, health, metrics, logs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

import service.jobs.tables
import service.serving.registry
from models.encoder.encoder import Encoder
from service.foundation.errors import NotFound
from service.foundation.logs import JsonLines, request_id
from service.foundation.metrics import Metrics
from service.foundation.settings import Settings
from service.http.app import create_app
from service.http.middleware.request_context import RequestContext
from service.http.resources import open_engine
from service.storage.database import Table, writing
from tests.service.conftest import save_tiny_model
from tests.service.jobs.galleries import enrol_embeddings
from tests.service.requests import contents, enrol, identify, problem
from tests.service.server import Serve, serving, settings_for
from tests.service.walkers import walk


def test_after_a_restart_everything_is_as_it_was(settings: Settings) -> None:
    with serving(settings) as client:
        enrol(client, "anna", walk(1))
        before = contents(client)
        found = identify(client, walk(1)).json()["candidates"]
    with serving(settings) as client:
        assert contents(client) == before
        assert identify(client, walk(1)).json()["candidates"] == found


def test_two_processes_serve_one_gallery(serve: Serve) -> None:
    one, two = serve(), serve()
    enrol(one, "anna", walk(1))
    assert identify(two, walk(1)).json()["candidates"][0]["subject_id"] == "anna"
    two.delete("/subjects/anna")
    assert identify(one, walk(1)).json()["candidates"] == []


def test_a_replaced_checkpoint_embeds_everything_anew_before_it_is_ready(tmp_path: Path) -> None:
    old = save_tiny_model(tmp_path / "models" / "default", seed=1)
    settings = settings_for(tmp_path / "data", tmp_path / "models")
    with serving(settings) as client:
        enrol(client, "anna", walk(1))
        enrol(client, "bert", walk(2))
        assert client.get("/readyz").json()["model"]["digest"] == old.digest
    new = save_tiny_model(tmp_path / "models" / "default", seed=2)
    with serving(settings) as client:
        body = identify(client, walk(2)).json()
        assert body["model"]["digest"] == new.digest != old.digest
        assert body["candidates"][0]["subject_id"] == "bert"
        assert body["candidates"][0]["similarity"] > 0.9999


def test_until_it_is_ready_it_says_what_it_waits_for(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(settings) as client:
        enrol(client, "anna", walk(1))
    with writing(engine).begin() as connection:
        connection.exec_driver_sql("DELETE FROM embedding")

    def broken(*_: object) -> None:
        raise RuntimeError("torch is broken here")

    monkeypatch.setattr(Encoder, "encode", broken)
    with serving(settings, until_ready=False) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        for answer in (
            client.get("/readyz"),
            identify(client, walk(1)),
            enrol(client, "b", walk(2)),
        ):
            body = problem(answer, 503)
            assert body["type"] == "/problems/not-ready"
            assert "torch" not in body["detail"]
            assert int(answer.headers["retry-after"]) >= 1
        assert "gaitid_ready 0.0" in client.get("/metrics").text


def test_it_stops_at_once_in_the_middle_of_embedding_anew(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(settings) as client:
        enrol(client, "anna", walk(2, frames=24))
    enrol_embeddings(engine, settings, "bert", [np.ones((4, 16), np.float32)] * 40)
    with writing(engine).begin() as connection:
        connection.exec_driver_sql("DELETE FROM embedding")
    going_on = threading.Event()
    encode = Encoder.encode

    def slow(self: Encoder, walks: Sequence[np.ndarray]) -> np.ndarray:
        going_on.wait(10)
        return encode(self, walks)

    monkeypatch.setattr(Encoder, "encode", slow)
    with serving(settings, until_ready=False) as client:
        deadline = time.monotonic() + 10
        while "0 of 41 sequences" not in problem(client.get("/readyz"), 503)["detail"]:
            assert time.monotonic() < deadline
        threading.Timer(0.3, going_on.set).start()
    with engine.connect() as connection:
        embedded = connection.exec_driver_sql("SELECT count(*) FROM embedding").scalar_one()
    assert embedded < 41
    monkeypatch.undo()
    with serving(settings) as client:
        assert identify(client, walk(2, frames=24)).json()["candidates"][0]["similarity"] > 0.9999


def test_a_request_that_the_end_of_the_service_cuts_off_is_503() -> None:
    sent: list[Message] = []

    async def waiting(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()

    async def receive() -> Message:
        raise asyncio.CancelledError("timeout graceful shutdown exceeded")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/enroll", "headers": []}
    asyncio.run(RequestContext(waiting, Metrics())(scope, receive, send))
    assert sent[0]["status"] == 503
    assert Headers(raw=sent[0]["headers"])["retry-after"] == "10"
    assert json.loads(sent[1]["body"])["type"] == "/problems/unavailable"


def test_a_model_that_is_not_there_stops_the_start(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"model": "missing"}))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(NotFound, match="missing"):
        asyncio.run(start())


def test_metrics_name_routes_and_durations_but_nobody(serve: Serve) -> None:
    client = serve()
    enrol(client, "a-secret-name", walk(1))
    identify(client, walk(1))
    client.get("/subjects/a-secret-name")
    client.get("/nowhere/a-secret-name")
    client.request("PROPFIND", "/galleries")
    text = client.get("/metrics").text
    assert 'route="/subjects/{subject_id}",status="200"' in text
    assert 'method="OTHER"' in text
    assert 'route="unmatched",status="404"' in text
    for name in ("decode", "queue", "embed", "search"):
        assert f"gaitid_{name}_duration_seconds_count" in text
    assert "gaitid_ready 1.0" in text
    assert "a-secret-name" not in text


def test_logs_carry_the_request_s_id_and_nobody_s_name(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()
    caplog.set_level(logging.DEBUG)
    enrol(client, "a-secret-name", walk(1))
    identify(client, walk(1), filter='{"camera": "a-secret-camera"}')
    answer = client.get("/subjects/a-secret-name", headers={"X-Request-ID": "my-id:1"})
    assert answer.headers["x-request-id"] == "my-id:1"
    lines = [JsonLines().format(record) for record in caplog.records if "service" in record.name]
    assert any('"route": "/subjects/{subject_id}"' in line for line in lines)
    assert not any("secret" in line for line in lines)


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", "<script>"])
def test_a_strange_request_id_is_replaced(shared: httpx.Client, sent: str) -> None:
    answer = shared.get("/healthz", headers={"X-Request-ID": sent})
    assert answer.headers["x-request-id"] not in ("", sent)


def test_a_log_line_is_one_json_object_with_id_and_exception() -> None:
    token = request_id.set("r1")
    try:
        raise KeyError("x")
    except KeyError:
        record = logging.LogRecord(
            "n", logging.ERROR, "f", 1, "two\nlines %s", ("é",), sys.exc_info()
        )
    record.status = 500
    line = JsonLines().format(record)
    request_id.reset(token)
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed["message"] == "two\nlines é"
    assert (parsed["request_id"], parsed["status"]) == ("r1", 500)
    assert "KeyError" in parsed["exception"]


def test_an_unexpected_exception_is_a_500_that_tells_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()

    def explode(*_arguments: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr("service.gallery.store.GalleryStore.gallery", explode)
    answer = client.get("/galleries/default", headers={"X-Request-ID": "find-me"})
    body = problem(answer, 500)
    assert "secret" not in answer.text
    assert "find-me" in body["detail"]
    assert any("a secret of ours" in (record.exc_text or "") or record.exc_info
               for record in caplog.records)  # fmt: skip
    monkeypatch.undo()
    assert client.get("/galleries/default").status_code == 200


def test_the_interface_is_described_with_problems_for_errors(shared: httpx.Client) -> None:
    schema = shared.get("/openapi.json").json()
    assert {"/enroll", "/identify", "/verify", "/galleries/{gallery}"} <= set(schema["paths"])
    default = schema["paths"]["/enroll"]["post"]["responses"]["default"]
    assert "application/problem+json" in default["content"]
    assert "HTTPValidationError" not in json.dumps(schema)
    assert 'href="docs"' in shared.get("/").text


def test_the_documentation_names_every_call_and_needs_no_other_host(shared: httpx.Client) -> None:
    page = shared.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path, operations in shared.get("/openapi.json").json()["paths"].items():
        for method in operations:
            assert f"<b>{method.upper()}</b> {path}" in page.text
    assert "<code>top_k</code>" in page.text
    assert (
        "<p>Errors: 400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 507</p>"
        in page.text
    )
    assert not re.search(r"(src|href)=.?(https?:)?//|<script", page.text)


def test_the_migrations_make_the_tables_that_the_code_declares(settings: Settings) -> None:
    engine = open_engine(settings)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


def test_the_migrations_can_be_undone(settings: Settings) -> None:
    engine = open_engine(settings)
    config = Config()
    config.set_main_option(
        "script_location", str(Path(service.__file__).parent / "storage" / "migrations")
    )
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()

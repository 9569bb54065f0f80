"""Traces of requests and jobs: what belongs together is one trace, and it names nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine

from service.foundation import tracing
from service.foundation.settings import Settings
from service.jobs.queue import JobQueue
from tests.service.jobs.workers import worker_of
from tests.service.requests import enrol, identify, problem
from tests.service.server import Serve
from tests.service.walkers import walk

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def within(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert parent.context is not None
    return span.parent is not None and span.parent.span_id == parent.context.span_id


def named(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


def test_a_search_is_one_trace_from_its_client_through_decoding_embedding_and_search(
    serve: Serve, spans: InMemorySpanExporter
) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    spans.clear()
    client.headers["traceparent"] = PARENT
    assert identify(client, walk(1)).status_code == 200
    request = named(spans, "POST /identify")
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    for name in ("decode", "queue", "embed", "search"):
        step = named(spans, name)
        assert trace_of(step) == TRACE
        assert within(step, request)
        assert step.start_time is not None
        assert step.end_time is not None
        assert request.start_time is not None
        assert request.start_time - 10**6 <= step.start_time <= step.end_time


def test_spans_name_nobody(
    serve: Serve, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve()
    enrol(client, "a-secret-name", walk(1), metadata='{"camera": "a-secret-camera"}')
    identify(client, walk(1), filter='{"camera": "a-secret-camera"}')
    client.get("/subjects/a-secret-name?gallery=default")
    client.get("/nowhere/a-secret-name")
    client.get("/galleries", headers={"User-Agent": "a-secret-agent", "tracestate": "a=secret"})
    sent = {"sequence": ("a-secret-file.npz", b"not a walk")}
    problem(client.post("/identify", files=sent), 415)

    def explode(*_arguments: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr("service.gallery.store.GalleryStore.gallery", explode)
    problem(client.get("/galleries/default"), 500)
    monkeypatch.undo()
    told = [span.to_json() for span in spans.get_finished_spans()]
    assert len(told) > 10
    assert not [text for text in told if "secret" in text]


def test_a_parent_that_cannot_be_read_counts_as_none(
    serve: Serve, spans: InMemorySpanExporter
) -> None:
    client = serve()
    for sent in ("", "x", "00-0-0-01", f"00-{'0' * 32}-{'0' * 16}-01", "é" * 99):
        spans.clear()
        answer = client.get("/healthz", headers=[(b"traceparent", sent.encode())])
        assert answer.status_code == 200
        assert named(spans, "GET /healthz").parent is None


class Collector:
    """A collector of OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[SentSpan] = []

    @contextmanager
    def listening(self) -> Iterator[str]:
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sent = ExportTraceServiceRequest.FromString(body)
                for resource in sent.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def test_a_job_belongs_to_the_trace_of_its_request_and_so_does_its_command(
    serve: Serve,
    spans: InMemorySpanExporter,
    settings: Settings,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = serve()
    client.headers["traceparent"] = PARENT
    job = client.post("/jobs/reindex", json={}).json()
    request = named(spans, "POST /jobs/reindex")
    assert trace_of(request) == TRACE
    collector = Collector()
    with collector.listening() as endpoint:  # of the command, which is a process of its own
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        assert worker_of(settings, engine).run_one()
    assert JobQueue.of(engine, settings).get(job["id"]).status == "succeeded"
    run = named(spans, "job reindex")
    assert within(run, request)
    (step,) = [span for span in spans.get_finished_spans() if span.name.startswith("step ")]
    assert within(step, run)
    assert trace_of(step) == TRACE
    (command,) = collector.spans
    assert command.name.startswith("command ")
    assert command.trace_id.hex() == TRACE
    assert step.context is not None
    assert command.parent_span_id.hex() == f"{step.context.span_id:016x}"


def test_without_the_standard_variables_nothing_is_traced_or_loaded(
    shared: httpx.Client, settings: Settings, engine: Engine
) -> None:
    assert shared.get("/healthz", headers={"traceparent": PARENT}).status_code == 200
    assert JobQueue.of(engine, settings).enqueue("fake", {}).traceparent is None
    assert tracing.span("a") is not None
    code = (
        "import sys; from service.foundation import tracing; tracing.set_up()\n"
        "with tracing.span('a') as span: assert span is None\n"
        "tracing.past('b', 0.0, 1.0); assert tracing.traceparent() is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
    ],
)
def test_the_standard_variables_decide(variables: dict[str, str], expected: bool) -> None:
    assert tracing._wanted(variables) is expected


def test_traces_without_their_packages_are_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(tracing.CannotTrace, match="the extra `otel`"):
        tracing.set_up()


def test_a_collector_that_is_away_holds_no_process_up() -> None:
    code = (
        "from service.foundation import tracing; tracing.set_up()\n"
        "with tracing.span('a') as span: assert span is not None"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        check=True,
        timeout=60,
        capture_output=True,
    )

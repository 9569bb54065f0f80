"""Traces (OpenTelemetry) of requests and jobs, where the environment asks for them.

They are on once a standard variable says where to: `OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_TRACES_EXPORTER=otlp`; all others of the SDK's count
too. Off, a span is nothing, and the packages of the extra `otel` are not loaded.

Spans say what takes time. They name nobody: no ids of people or walks, no names of files, no
addresses, no texts of errors.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

TRACEPARENT_VARIABLE = "TRACEPARENT"
"""The environment variable in which a job's command finds the span that it belongs to."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_S = 3.0  # at the end of a process, of which a collector that is away must not make more

Attribute = str | int | float | bool


class CannotTrace(Exception):
    """Traces are asked for and cannot be made; the text says what to do."""


_tracer: Tracer | None = None


def set_up() -> None:
    """Export this process's spans if the environment asks for it; raises `CannotTrace`."""
    if not _wanted(os.environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise CannotTrace(
            "OTEL_… variables ask for traces, which need the extra `otel`: pip install "
            "'gaitid[otel]', or unset them"
        ) from error
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "gaitid"}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)
    atexit.register(_flush, provider)


def use(provider: TracerProvider | None) -> None:
    """Make spans with a provider; None: none."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("gaitid")


def span(
    name: str, *, parent: str | None = None, server: bool = False, **attributes: Attribute
) -> AbstractContextManager[Span | None]:
    """A span for as long as the block lasts, within the current one or the `parent`.

    `parent` is what `traceparent` returned, or a client sent; one that cannot be read counts as
    none.
    """
    if _tracer is None:
        return nullcontext()
    return _span(_tracer, name, parent, server, attributes)


def past(name: str, begin: float, end: float) -> None:
    """A span that is over, within the current one; its times are of `time.perf_counter`."""
    if _tracer is not None:
        offset = time.time_ns() - time.perf_counter_ns()
        made = _tracer.start_span(name, start_time=int(begin * 1e9) + offset)
        made.end(int(end * 1e9) + offset)


def traceparent() -> str | None:
    """The current span as W3C Trace Context writes it; None without one."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def _span(
    tracer: Tracer,
    name: str,
    parent: str | None,
    server: bool,
    attributes: Mapping[str, Attribute],
) -> Iterator[Span]:
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = None
    if parent is not None:
        context = TraceContextTextMapPropagator().extract({"traceparent": parent})
    with tracer.start_as_current_span(
        name,
        context=context,
        kind=SpanKind.SERVER if server else SpanKind.INTERNAL,
        attributes={f"gaitid.{key}": value for key, value in attributes.items()},
        record_exception=False,  # its text may name somebody
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def _wanted(environment: Mapping[str, str]) -> bool:
    exporters = environment.get("OTEL_TRACES_EXPORTER", "")
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporters == "none":
        return False
    return exporters == "otlp" or any(environment.get(name) for name in _ENDPOINTS)


def _flush(provider: TracerProvider) -> None:
    """Send what is left, in a thread that the end of the process need not wait for."""
    thread = threading.Thread(target=provider.shutdown, daemon=True)
    thread.start()
    thread.join(_FLUSH_S)

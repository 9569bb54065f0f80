"""Metrics for Prometheus: counts and durations that name nobody."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=self.registry, buckets=_SECONDS)

        self.request_seconds = histogram(
            "gaitid_http_request_duration_seconds",
            "From a request's head to the end of its answer.",
            "method",
            "route",
            "status",
        )
        self.decode_seconds = histogram(
            "gaitid_decode_duration_seconds", "Decoding and preparing one sequence."
        )
        self.queue_seconds = histogram(
            "gaitid_queue_duration_seconds", "A prepared sequence waiting for its batch."
        )
        self.embed_seconds = histogram(
            "gaitid_embed_duration_seconds", "One batch through the network."
        )
        self.search_seconds = histogram(
            "gaitid_search_duration_seconds", "Searching a gallery, catching up with it included."
        )
        self.decisions = Counter(
            "gaitid_decisions_total", "Identifications by decision.", ["decision"],
            registry=self.registry,
        )  # fmt: skip
        self.model_exchanges = Counter(
            "gaitid_model_exchanges_total", "Changes of a gallery's model, by how they ended.",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        self.damaged = Counter(
            "gaitid_damaged_rows_read_total", "Damaged rows that were read, and not used.",
            ["what"], registry=self.registry,
        )  # fmt: skip
        self.models_loaded = Gauge(
            "gaitid_models_loaded", "Checkpoints in memory.", registry=self.registry
        )
        self.pending = Gauge(
            "gaitid_pending_sequences",
            "Sequences being decoded or embedded, or waiting for it.",
            registry=self.registry,
        )
        self.workers = Gauge(
            "gaitid_workers", "Worker processes of the deployment that live.",
            registry=self.registry,
        )  # fmt: skip
        self.ready = Gauge(
            "gaitid_ready", "1 once model and indexes are loaded.", registry=self.registry
        )

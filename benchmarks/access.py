"""What encryption and the audit record cost, each with and without, taking turns.

One process, no HTTP: opening 10,000 enrolled embeddings into an index, keeping one enrolment,
encrypting 10,000 walks that were plain, and recording one search.

    python -m benchmarks.access [--out FILE.json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import SecretStr
from sqlalchemy import Engine

from benchmarks import machine
from models.silhouettes.types import Quality
from service.access.audit.entries import Actor, Entry
from service.access.audit.record import AuditRecord
from service.foundation.settings import Settings
from service.gallery.faiss_index import FaissIndex
from service.gallery.listing import is_enrolled
from service.gallery.live_index import LiveIndex
from service.gallery.records import Walk
from service.gallery.reencryption import reencrypt
from service.gallery.store import GalleryStore
from service.http.resources import open_engine
from service.storage.encryption import new_secret

ENROLLED = 10_000
PARTS, CHANNELS, FRAMES = 16, 256, 40
TIMES = 5
CALLS = 300
DIGEST = "benchmark"


def walks(count: int) -> list[Walk]:
    """Sequences with random embeddings; the silhouettes are as large as a person's."""
    rng = np.random.default_rng(0)
    silhouettes = np.zeros((FRAMES, 64, 64), np.uint8)
    silhouettes[:, 8:60, 24:40] = 255
    return [
        Walk(
            "walk",
            silhouettes,
            Quality(1.0, (), FRAMES, FRAMES, {}),
            rng.standard_normal((PARTS, CHANNELS)).astype(np.float32),
        )
        for _ in range(count)
    ]


def enrol(store: GalleryStore, subject: str, count: int) -> None:
    """Keep walks of one subject."""
    sequences = [store.seal(walk, {}, DIGEST) for walk in walks(count)]
    with store.enrolling(store.head("default").gallery_id, subject) as transaction:
        transaction.add(sequences)


@contextmanager
def gallery(folder: Path, secret: str | None) -> Iterator[Engine]:
    """A gallery of 10,000 walks, plain or encrypted."""
    key = None if secret is None else SecretStr(secret)
    engine = open_engine(Settings(data_dir=folder, encryption_keys=key))
    store = GalleryStore(engine)
    store.ensure("default")
    for number in range(ENROLLED // 100):
        enrol(store, f"s{number:03}", 100)
    yield engine
    engine.dispose()


def load(engine: Engine) -> None:
    """Read every embedding into an index, as a service that starts does."""
    store = GalleryStore(engine)
    index = FaissIndex(PARTS, CHANNELS, "cosine", shortlist=100, gpu=False)
    gallery_id, newest, _ = store.head("default")
    LiveIndex(gallery_id, DIGEST, index, store, lambda _missing: {}).follow(newest)


def timed(work: Callable[[], object], times: int) -> list[float]:
    """How long each of several runs takes, in seconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def measure() -> dict[str, object]:
    """Everything, as rows of a table."""
    rows: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        gallery(Path(folder) / "plain", None) as plain,
        gallery(Path(folder) / "sealed", new_secret()) as sealed,
    ):
        for name, engine in (("plain", plain), ("encrypted", sealed)) * 2:  # the first warms up
            store = GalleryStore(engine)
            rows[f"load {ENROLLED} embeddings, {name}"] = machine.milliseconds(
                timed(partial(load, engine), TIMES)
            )
            rows[f"keep one enrolment, {name}"] = machine.milliseconds(
                timed(partial(enrol, store, "new", 1), CALLS)
            )
        settings = Settings(data_dir=Path(folder) / "plain")
        with closing(AuditRecord(settings, partial(is_enrolled, plain))) as audit:
            search = Entry("identify", "default", "s000", {"similarity": 0.5, "candidates": 5})
            rows["record one search"] = machine.milliseconds(
                timed(lambda: audit.read(search, Actor("anyone")), CALLS)
            )
        settings = settings.model_copy(update={"encryption_keys": SecretStr(new_secret())})
        fresh = open_engine(settings)
        began = time.perf_counter()
        count = reencrypt(fresh)
        rows[f"encrypt {count} plain rows"] = {"s": round(time.perf_counter() - began, 1)}
        fresh.dispose()
    return {
        "benchmark": "encryption and the audit record",
        "machine": machine.describe(),
        "rows": rows,
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(measure(), options.out)


if __name__ == "__main__":
    main()

"""What encryption and the audit record cost, each with and without, taking turns.

One process, no HTTP: opening 10,000 (`--walks`) enrolled embeddings into an index, reading the 100
that a search ranks exactly, keeping one enrolment and erasing it, plain, encrypted with the
deployment's key, and encrypted with keys of the walks' own; encrypting as many walks that were
plain; sealing the keys of as many anew; recording one search.

    python -m benchmarks.access [--walks N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from pydantic import SecretStr
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

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
from service.gallery.sealing import sealing_of
from service.gallery.store import GalleryStore
from service.gallery.tables import SequenceRow
from service.http.resources import open_engine
from service.privacy.erasure_transactions import erase_subject
from service.storage.encryption import new_secret

PARTS, CHANNELS, FRAMES = 16, 256, 40
TIMES = 5
CALLS = 100
SHORTLIST = 100
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
    sequences = store.seal(walks(count), {}, DIGEST)
    with store.enrolling(store.head("default").gallery_id, subject) as transaction:
        transaction.add(sequences)


@contextmanager
def gallery(
    folder: Path, enrolled: int, secret: str | None, *, own: bool = False
) -> Iterator[Engine]:
    """A gallery, plain or encrypted, with keys of the walks' own or without."""
    key = None if secret is None else SecretStr(secret)
    keys_url = f"sqlite:///{folder}-walk-keys.sqlite" if own else None
    engine = open_engine(Settings(data_dir=folder, encryption_keys=key, walk_keys_url=keys_url))
    store = GalleryStore(engine)
    store.ensure("default")
    for number in range(enrolled // 100):
        enrol(store, f"s{number:03}", 100)
    yield engine
    engine.dispose()


def load(engine: Engine) -> None:
    """Read every embedding into an index, as a service that starts does."""
    store = GalleryStore(engine)
    index = FaissIndex(PARTS, CHANNELS, "cosine", shortlist=100, gpu=False)
    gallery_id, newest, _ = store.head("default")
    LiveIndex(gallery_id, DIGEST, index, store, lambda _missing: {}).follow(newest)


def sequence_ids(engine: Engine) -> list[str]:
    """Of the whole gallery."""
    with Session(engine) as session:
        return list(session.scalars(select(SequenceRow.id)))


def shortlist(store: GalleryStore, among: list[str], drawn: random.Random) -> None:
    """Read what a search ranks exactly where the index holds codes."""
    store.embeddings(DIGEST, drawn.sample(among, SHORTLIST))


def erase(engine: Engine) -> None:
    """Erase whom `enrol` has just kept."""
    erase_subject(engine, "default", "new")


class Times:
    """How long something takes, again and again: by the clock, and of processors."""

    def __init__(self) -> None:
        self._clock: list[float] = []
        self._cpu: list[float] = []

    def take(self, work: Callable[[], object]) -> None:
        """Do it once."""
        clock, cpu = time.perf_counter(), time.process_time()
        work()
        self._clock.append(time.perf_counter() - clock)
        self._cpu.append(time.process_time() - cpu)

    def summary(self) -> dict[str, float]:
        """On a busy machine the processors' time says more."""
        cpu = round(median(self._cpu) * 1000, 2)
        return {**machine.milliseconds(self._clock), "cpu_ms": cpu}


def measure(enrolled: int) -> dict[str, object]:
    """Everything, as rows of a table."""
    rows: dict[str, dict[str, float]] = {}
    secret, drawn = new_secret(), random.Random(0)  # noqa: S311
    with (
        tempfile.TemporaryDirectory() as folder,
        gallery(Path(folder) / "plain", enrolled, None) as plain,
        gallery(Path(folder) / "sealed", enrolled, secret) as sealed,
        gallery(Path(folder) / "own", enrolled, secret, own=True) as own,
    ):
        engines = {"plain": plain, "encrypted": sealed, "with keys of their own": own}
        taken: dict[str, Times] = defaultdict(Times)
        ids = {name: sequence_ids(engine) for name, engine in engines.items()}
        for engine in engines.values():
            load(engine)  # warms up
        for turn in range(CALLS):
            for name, engine in engines.items():
                store = GalleryStore(engine)
                if turn < TIMES:
                    sealing_of(engine).forget(ids[name])  # as after a start
                    taken[f"load {enrolled} embeddings, {name}"].take(partial(load, engine))
                for what, work in (
                    (f"read {SHORTLIST} embeddings", partial(shortlist, store, ids[name], drawn)),
                    ("keep one enrolment", partial(enrol, store, "new", 1)),
                    ("erase it", partial(erase, engine)),
                ):
                    taken[f"{what}, {name}"].take(work)
        settings = Settings(data_dir=Path(folder) / "plain")
        with closing(AuditRecord(settings, partial(is_enrolled, plain))) as audit:
            search = Entry("identify", "default", "s000", {"similarity": 0.5, "candidates": 5})
            for _ in range(CALLS):
                taken["record one search"].take(lambda: audit.read(search, Actor("anyone")))
        rows |= {what: times.summary() for what, times in taken.items()}
        settings = settings.model_copy(update={"encryption_keys": SecretStr(new_secret())})
        fresh = open_engine(settings)
        began = time.perf_counter()
        count = reencrypt(fresh)
        rows[f"encrypt {count} plain rows"] = {"s": round(time.perf_counter() - began, 1)}
        fresh.dispose()
        both = SecretStr(f"{new_secret()},{secret}")
        settings = Settings(
            data_dir=Path(folder) / "own",
            encryption_keys=both,
            walk_keys_url=f"sqlite:///{folder}/own-walk-keys.sqlite",
        )
        fresh = open_engine(settings)
        began = time.perf_counter()
        reencrypt(fresh)
        rows[f"replace the key above {enrolled} keys of walks"] = {
            "s": round(time.perf_counter() - began, 1)
        }
        fresh.dispose()
    return {
        "benchmark": "encryption and the audit record",
        "machine": machine.describe(),
        "rows": rows,
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--walks", type=int, default=10_000, help="in each gallery")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(measure(options.walks), options.out)


if __name__ == "__main__":
    main()

"""Galleries for benchmarks of the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.silhouettes.types import Quality
from service.foundation.settings import Settings
from service.gallery.records import Walk
from service.gallery.store import GalleryStore
from service.http.resources import open_engine

DrawWalk = Callable[[np.random.Generator], npt.NDArray[np.uint8]]


def fill(
    data_dir: Path,
    sequences: int,
    digest: str,
    shape: tuple[int, int],
    walk: DrawWalk,
    database_url: str | None = None,
) -> None:
    """Enrol sequences with random embeddings, four to a subject.

    Args:
        data_dir: of a service that is not running.
        sequences: how many.
        digest: of the checkpoint whose embeddings they pass for.
        shape: parts and channels of one.
        walk: draws the silhouettes of a sequence, uint8 `[s, 64, 64]`.
        database_url: of its database, if that is no file in `data_dir`.
    """
    engine = open_engine(Settings(data_dir=data_dir, database_url=database_url))
    store = GalleryStore(engine)
    store.ensure("default")
    gallery_id = store.head("default").gallery_id
    rng = np.random.default_rng(0)
    for subject in range(sequences // 4):
        drawn = [
            Walk(
                "walk",
                walk(rng),
                Quality(1.0, (), 1, 1, {}),
                rng.standard_normal(shape).astype(np.float32),
            )
            for _ in range(4)
        ]
        sealed = store.seal(drawn, {}, digest)
        with store.enrolling(gallery_id, f"s{subject:06}") as transaction:
            transaction.add(sealed)
    engine.dispose()

"""Walks in a gallery without a service to enrol them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from models.silhouettes.types import Quality
from service.foundation.settings import Settings
from service.gallery.records import Embedding, Metadata, Silhouettes, Walk
from service.gallery.store import GalleryStore, NewSequence
from service.serving.registry import find_model
from tests.service.walkers import GOOD

BLANK: NDArray[np.uint8] = np.zeros((1, 64, 64), np.uint8)


def made_walk(
    embedding: Embedding, silhouettes: Silhouettes = BLANK, quality: Quality = GOOD
) -> Walk:
    return Walk("walk", silhouettes, quality, embedding)


def add(
    store: GalleryStore,
    gallery: str,
    subject: str,
    walks: Iterable[Walk],
    digest: str,
    metadata: Metadata | None = None,
) -> list[NewSequence]:
    """Enrol walks without a look at what is there."""
    sequences = store.seal(list(walks), metadata or {}, digest)
    with store.enrolling(store.head(gallery).gallery_id, subject) as transaction:
        transaction.add(sequences)
    return sequences


def enrol(store: GalleryStore, gallery: str, subject: str, count: int) -> list[NewSequence]:
    """Enrol noise, always the same."""
    generator = np.random.default_rng(7)
    walks = [
        made_walk(
            np.ones((2, 4), np.float32),
            generator.integers(0, 256, (3 + number % 4, 64, 64), np.uint8),
        )
        for number in range(count)
    ]
    return add(store, gallery, subject, walks, "digest", {"view": "090"})


def enrol_embeddings(
    engine: Engine,
    settings: Settings,
    subject: str,
    embeddings: Iterable[Embedding],
    *,
    silhouettes: Iterable[Silhouettes] = repeat(BLANK),
    quality: Quality = GOOD,
    gallery: str = "default",
) -> Sequence[str]:
    """Enrol by embeddings of the deployment's own model; returns the ids."""
    digest = find_model(settings, engine, settings.model).digest
    walks = [
        made_walk(embedding, walk, quality)
        for embedding, walk in zip(embeddings, silhouettes, strict=False)
    ]
    return [one.sequence_id for one in add(GalleryStore(engine), gallery, subject, walks, digest)]

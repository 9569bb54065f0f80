"""Walks in a gallery without a service to enrol them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np
from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.gallery.records import Embedding, NewSequence, SequenceQuality, Silhouettes
from service.gallery.store import GalleryStore
from service.serving.registry import find_model
from service.storage.database import new_id

GOOD = SequenceQuality(1.0)


def enrol(store: GalleryStore, gallery: str, subject: str, count: int) -> list[NewSequence]:
    generator = np.random.default_rng(7)
    sequences = [
        NewSequence(
            sequence_id=new_id(),
            silhouettes=generator.integers(0, 256, (3 + number % 4, 64, 64), np.uint8),
            quality=GOOD,
            metadata={"view": "090"},
            embedding=np.ones((2, 4), np.float32),
        )
        for number in range(count)
    ]
    store.enrol(gallery, subject, sequences, "digest", lambda _session: None)
    return sequences


def enrol_embeddings(
    engine: Engine,
    settings: Settings,
    subject: str,
    embeddings: Iterable[Embedding],
    *,
    silhouettes: Iterable[Silhouettes] = repeat(np.zeros((1, 64, 64), np.uint8)),
    quality: SequenceQuality = GOOD,
    gallery: str = "default",
) -> Sequence[str]:
    """Enrol by embeddings of the deployment's own model; returns the ids."""
    digest = find_model(settings, settings.model).digest
    new = [
        NewSequence(new_id(), walk, quality, {}, embedding)
        for embedding, walk in zip(embeddings, silhouettes, strict=False)
    ]
    GalleryStore(engine).enrol(gallery, subject, new, digest, lambda _: None)
    return [one.sequence_id for one in new]

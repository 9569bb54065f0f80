"""A gallery as people have it: what a walk's embedding says of the view drowns the person."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.gallery.store import GalleryStore
from service.serving.registry import find_model
from tests.service.jobs.galleries import add, made_walk

VIEWS = ("000", "045", "090")


def people_in_views(count: int, *, seed: int = 0) -> NDArray[np.float32]:
    """[count, a walk in each view, 4 parts, 16 channels], as the tiny model embeds."""
    rng = np.random.default_rng(seed)
    views = 3 * np.random.default_rng(99).standard_normal((1, len(VIEWS), 4, 16))
    persons = rng.standard_normal((count, 1, 4, 16))
    # How strongly a view colours a walk differs from walk to walk, as cameras and clothes do.
    strength = rng.uniform(0.3, 1.7, (count, len(VIEWS), 1, 1))
    noise = 0.3 * rng.standard_normal((count, len(VIEWS), 4, 16))
    return (persons + strength * views + noise).astype(np.float32)


def fill(
    engine: Engine,
    settings: Settings,
    people: NDArray[np.float32],
    *,
    first: int = 0,
    gallery: str = "default",
    model: str = "default",
) -> None:
    """Enrol people by their embeddings, under the views' names."""
    digest = find_model(settings, engine, model).digest
    store = GalleryStore(engine)
    for number, walks in enumerate(people, first):
        for view, embedding in zip(VIEWS, walks, strict=True):
            walk = [made_walk(embedding)]
            add(store, gallery, f"p{number}", walk, digest, {"view": view})

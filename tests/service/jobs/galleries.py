"""Walks in a gallery without a service to enrol them."""

import numpy as np

from service.gallery.records import NewSequence
from service.gallery.store import GalleryStore
from service.storage.database import new_id
from tests.service.walkers import GOOD


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

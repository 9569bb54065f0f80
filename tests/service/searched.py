"""Galleries as requests search them: in this process's memory, or in Milvus that all share.

Milvus is milvus-lite, or the server whose address is in `TEST_MILVUS` (milvus://HOST:PORT): the
same tests run against both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.similarity import index_vectors
from service.foundation.milvus_address import MilvusAddress
from service.gallery.index import GalleryIndex, Hits, Keys
from service.gallery.index_collections import IndexCollections, Serves
from service.gallery.live_index import EmbedMissing, LiveIndex
from service.gallery.memory_index import MemoryIndex
from service.gallery.milvus_index import Milvus
from service.gallery.ranking import Candidate, GallerySearch
from service.gallery.records import Embedding
from service.gallery.scenes import Scene
from service.gallery.shared_index import SharedIndex
from service.gallery.store import GalleryStore
from service.storage.database import new_id

in_milvus: Milvus | None = None
"""Where `searched_gallery` searches, if not in memory; the fixture `searched` sets it."""


def open_milvus(folder: Path) -> Milvus:
    server = os.environ.get("TEST_MILVUS")
    return Milvus(MilvusAddress.parse(server or f"milvus://{folder / 'milvus.db'}"))


def both(test: Callable[..., None]) -> Any:
    """Run a test with galleries in memory, and again with galleries in Milvus."""
    where = pytest.mark.parametrize("searched", ["in memory", "in Milvus"], indirect=True)
    return pytest.mark.usefixtures("searched")(where(test))


def searched_gallery(
    gallery_id: str,
    digest: str,
    shape: tuple[int, int],
    metric: Metric,
    store: GalleryStore,
    embed: EmbedMissing = lambda _: {},
    *,
    scene: Scene | None = None,
    index: GalleryIndex | None = None,
) -> GallerySearch:
    """A gallery as a process that starts now searches it; in memory by `index`."""
    if in_milvus is None:
        index = MemoryIndex(*shape, metric) if index is None else index
        return LiveIndex(gallery_id, digest, index, store, embed, scene=scene)
    serves = Serves(gallery_id, digest, None if scene is None else scene.version, 0)
    collections = IndexCollections(store.engine, in_milvus)
    return WrittenIndex(serves, shape, metric, store, collections, embed, scene=scene)


class WrittenIndex(SharedIndex):
    """One whose tail is written before every search: everything is found in Milvus."""

    def search(self, newest: int, probes: Embedding, subjects: int, **how: Any) -> list[Candidate]:
        self.follow(newest)
        self.keep()
        self.follow(newest)
        assert len(self._tail.index) == 0
        return super().search(newest, probes, subjects, **how)


class MilvusIndex:
    """A collection as an index behind the seam: keys are ids, and metadata of their rows."""

    def __init__(self, milvus: Milvus, parts: int, channels: int, metric: Metric) -> None:
        self._milvus = milvus
        self._shape, self._metric = (parts, channels), metric
        self._name = f"gaitid_test_{new_id().replace('-', '')}"
        self._held: dict[int, NDArray[np.float32]] = {}
        milvus.create(self._name, parts * channels)

    def __len__(self) -> int:
        count = self._milvus.count(self._name)
        assert count == len(self._held)
        return count

    @property
    def nbytes(self) -> int:
        return 4 * self._shape[0] * self._shape[1] * len(self)

    def add(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        if len(keys):
            said: list[dict[str, Any]] = [{"key": key} for key in keys.tolist()]
            names = [str(key) for key in keys.tolist()]
            self._milvus.write(self._name, names, said, index_vectors(embeddings))
        self._held |= dict(zip(keys.tolist(), embeddings, strict=True))

    def remove(self, keys: Keys) -> None:
        self._milvus.delete(self._name, [str(key) for key in keys.tolist()])
        for key in keys.tolist():
            self._held.pop(key, None)

    def search(self, probe: Embedding, limit: int, among: Keys | None = None) -> Hits:
        if among is not None and len(among) == 0:
            return Hits(among, np.empty(0, np.float32))
        where = None if among is None else {"key": tuple(among.tolist())}
        found = self._milvus.nearest(
            self._name, index_vectors(probe[None]), max(limit, 50), where, self._milvus.timestamp()
        )
        return self._exact(found.ids).search(probe, limit)

    def part_similarity(self, probe: Embedding, keys: Keys) -> NDArray[np.float32]:
        return self._exact({str(key) for key in keys.tolist()}).part_similarity(probe, keys)

    def _exact(self, ids: set[str]) -> MemoryIndex:
        index = MemoryIndex(*self._shape, self._metric)
        keys = np.array(sorted(int(one) for one in ids), np.int64)
        if len(keys):
            index.add(keys, np.stack([self._held[key] for key in keys.tolist()]))
        return index

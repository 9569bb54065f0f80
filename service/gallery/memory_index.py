"""The exact index: every embedding is compared with the checkpoint's own metric."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.similarity import part_similarity, similarity
from service.gallery.index import Hits, Keys
from service.gallery.records import Embedding


class MemoryIndex:
    """Embeddings in one array [k, p, c], searched from end to end."""

    def __init__(self, parts: int, channels: int, metric: Metric) -> None:
        self._metric: Metric = metric
        self._keys: Keys = np.empty(0, np.int64)
        self._embeddings = np.empty((0, parts, channels), np.float32)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Roughly how much memory the embeddings take."""
        return self._embeddings.nbytes

    def add(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings [k, p, c] under keys that are not in use."""
        self._keys = np.concatenate([self._keys, keys])
        self._embeddings = np.concatenate([self._embeddings, embeddings])

    def remove(self, keys: Keys) -> None:
        """Forget embeddings; keys that are not held are ignored."""
        stays = ~np.isin(self._keys, keys)
        self._keys, self._embeddings = self._keys[stays], self._embeddings[stays]

    def search(self, probe: Embedding, limit: int, among: Keys | None = None) -> Hits:
        """The `limit` embeddings most similar to the probe [p, c], only `among` these keys."""
        keys, embeddings = self._keys, self._embeddings
        if among is not None:
            chosen = np.isin(keys, among)
            keys, embeddings = keys[chosen], embeddings[chosen]
        if len(keys) == 0:
            return Hits(keys, np.empty(0, np.float32))
        similarities = similarity(probe, embeddings, self._metric)
        best = np.lexsort((keys, -similarities))[:limit]
        return Hits(keys[best], similarities[best])

    def part_similarity(self, probe: Embedding, keys: Keys) -> NDArray[np.float32]:
        """The similarity of each part to the embeddings held under `keys`: [k, p]."""
        rows = np.array([np.flatnonzero(self._keys == key)[0] for key in keys], np.intp)
        return part_similarity(probe, self._embeddings[rows], self._metric)

"""The seam behind which a gallery's embeddings are searched."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.gallery.records import Embedding

Keys = NDArray[np.int64]  # [k]: the index's owner gives the numbers


class Hits(NamedTuple):
    """What was found, most similar first: keys int64 [k] and similarities float32 [k]."""

    keys: Keys
    similarities: NDArray[np.float32]


class GalleryIndex(Protocol):
    """Embeddings float32 [p, c] of one gallery under one checkpoint.

    Not safe for use by several threads at once; the owner holds a lock.
    """

    def __len__(self) -> int:
        """How many embeddings are held."""

    @property
    def nbytes(self) -> int:
        """Roughly how much memory they take."""

    def add(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings [k, p, c] under keys that are not in use."""

    def remove(self, keys: Keys) -> None:
        """Forget embeddings; keys that are not held are ignored."""

    def search(self, probe: Embedding, limit: int, among: Keys | None = None) -> Hits:
        """The `limit` embeddings most similar to the probe [p, c], only `among` these keys."""

    def part_similarity(self, probe: Embedding, keys: Keys) -> NDArray[np.float32]:
        """The similarity of each part to the embeddings held under `keys`: [k, p]."""

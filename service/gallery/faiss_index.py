"""An index that compares everything: FAISS finds a shortlist, the checkpoint's metric ranks it.

The shortlist is by inner product of `index_vectors`, which is the mean cosine over parts: exactly
the ranking of a `cosine` checkpoint. For a `euclidean` checkpoint it is an approximation that the
shortlist's length has to make good; the order within the shortlist is exact for both.

The length of each part is kept beside the index vectors, so the embeddings themselves need no
second copy.
"""

from __future__ import annotations

import logging
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.similarity import index_vectors, part_similarity, similarity
from service.gallery.index import Hits, Keys
from service.gallery.records import Embedding

GPU_MAX_K = 2048  # what a GPU index of FAISS can return
GPU_SCRATCH = 64 * 2**20  # bytes of a GPU's memory that an index works in, beside its vectors

_log = logging.getLogger(__name__)


class FaissIndex:
    """Index vectors [k, p * c] in an exact inner-product index, on the GPU too where asked.

    The CPU index is complete on its own. The GPU's is a copy for searching everything: it can
    neither forget nor restrict itself to some keys, so what was removed means a new copy at the
    next search, and restricted searches stay on the CPU. So do all while the GPU has no room.
    """

    def __init__(
        self, parts: int, channels: int, metric: Metric, *, shortlist: int, gpu: bool = False
    ) -> None:
        """Make an empty index.

        Args:
            parts: p.
            channels: c.
            metric: what ranks the shortlist.
            shortlist: embeddings at least that are ranked exactly.
            gpu: search on the first GPU; `ValueError` when FAISS finds none.
        """
        if gpu and faiss.get_num_gpus() == 0:
            raise ValueError("FAISS finds no GPU here")
        self._parts = parts
        self._channels = channels
        self._metric: Metric = metric
        self._shortlist = shortlist
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(parts * channels))
        self._lengths: dict[int, NDArray[np.float32]] = {}  # [p] of each embedding's parts
        self._gpu_resources: Any = _gpu_resources() if gpu else None
        self._gpu_copy: Any = None

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def nbytes(self) -> int:
        """Roughly how much memory the vectors take."""
        return len(self._lengths) * (self._channels + 1) * self._parts * 4

    @property
    def keys(self) -> Keys:
        """The keys in use, in order."""
        return np.array(sorted(self._lengths), np.int64)

    def add(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings [k, p, c] under keys that are not in use."""
        if len(keys) == 0:
            return
        vectors = index_vectors(embeddings)
        self._index.add_with_ids(vectors, keys)
        lengths = np.linalg.norm(embeddings, axis=2)
        self._lengths.update(zip(keys.tolist(), lengths, strict=True))
        if self._gpu_copy is not None:
            try:
                self._gpu_copy.add(vectors)
            except RuntimeError as error:  # what is added must not be half added
                self._lose_gpu_copy(error)

    def remove(self, keys: Keys) -> None:
        """Forget embeddings; keys that are not held are ignored."""
        held = np.array([key for key in keys.tolist() if key in self._lengths], np.int64)
        if len(held) == 0:
            return
        self._index.remove_ids(held)
        for key in held.tolist():
            del self._lengths[key]
        self._gpu_copy = None

    def search(self, probe: Embedding, limit: int, among: Keys | None = None) -> Hits:
        """The `limit` embeddings most similar to the probe [p, c], only `among` these keys."""
        keys = self._nearest(probe, max(limit, self._shortlist), among)
        if len(keys) == 0:
            return Hits(keys, np.empty(0, np.float32))
        similarities = similarity(probe, self.embeddings(keys), self._metric)
        best = np.lexsort((keys, -similarities))[:limit]
        return Hits(keys[best], similarities[best])

    def part_similarity(self, probe: Embedding, keys: Keys) -> NDArray[np.float32]:
        """The similarity of each part to the embeddings held under `keys`: [k, p]."""
        return part_similarity(probe, self.embeddings(keys), self._metric)

    def embeddings(self, keys: Keys) -> NDArray[np.float32]:
        """The embeddings [k, p, c] held under `keys`, but for rounding."""
        if len(keys) == 0:
            return np.empty((0, self._parts, self._channels), np.float32)
        vectors = self._index.reconstruct_batch(keys)
        lengths = np.stack([self._lengths[int(key)] for key in keys])
        # Index vectors carry parts of length 1 / sqrt(p).
        scale = lengths[..., None] * np.float32(np.sqrt(self._parts))
        embeddings = vectors.reshape(len(keys), self._parts, self._channels) * scale
        return np.asarray(embeddings, np.float32)

    def _nearest(self, probe: Embedding, count: int, among: Keys | None) -> Keys:
        if among is not None and len(among) <= count:
            return np.array([key for key in among.tolist() if key in self._lengths], np.int64)
        count = min(count, len(self))
        if count == 0:
            return np.empty(0, np.int64)
        query = index_vectors(probe[None])
        if among is None and self._gpu_resources is not None and count <= GPU_MAX_K:
            try:
                return self._nearest_on_gpu(query, count)
            except RuntimeError as error:
                self._lose_gpu_copy(error)
        # One query is a memory scan: more threads only wait for each other on a busy machine.
        faiss.omp_set_num_threads(1)
        selector: Any = None if among is None else faiss.IDSelectorBatch(among)
        parameters: Any = faiss.SearchParameters
        found = self._index.search(
            query, count, params=None if selector is None else parameters(sel=selector)
        )[1][0]
        return np.asarray(found[found >= 0], np.int64)

    def _nearest_on_gpu(self, query: NDArray[np.float32], count: int) -> Keys:
        if self._gpu_copy is None:
            self._gpu_copy = faiss.index_cpu_to_gpu(self._gpu_resources, 0, self._index.index)
        positions = self._gpu_copy.search(query, count)[1][0]
        keys = faiss.vector_to_array(self._index.id_map)
        return np.asarray(keys[positions[positions >= 0]], np.int64)

    def _lose_gpu_copy(self, error: RuntimeError) -> None:
        """Do without the copy until the next search: a training may have all of the memory."""
        self._gpu_copy = None
        _log.warning("the GPU cannot hold or search an index, the CPU does: %s", error)


def _gpu_resources() -> Any:
    """What one index works with on a GPU.

    Of its own, because FAISS's serve one thread at a time. Left alone they would take up to 1.5 GiB
    of the GPU and 256 MiB of locked memory, again for every gallery, and one probe needs little.
    """
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(GPU_SCRATCH)
    resources.setPinnedMemory(0)
    return resources

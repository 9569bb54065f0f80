"""The index of a large gallery: two bits a number find a shortlist, full embeddings rank it.

Index vectors lie in lists around centres, each number coded in two bits (RaBitQ, as FAISS has it):
156 bytes for a walk of 512 numbers. A search reads the nearest 30 % of the lists. Its shortlist
is ranked by the embeddings themselves, which lie in a file without a name: the page cache has
those that are asked for, and the file is gone with the process.

How lists, bits and share were chosen: `python -m benchmarks.search`, docs/benchmarks.md.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.similarity import index_vectors, part_similarity, similarity
from service.gallery.index import Hits, Keys
from service.gallery.records import Embedding

LISTS = 512
PROBED = 0.3  # of the lists, by a search of all keys for a few
BITS = 2
_BLOCK = 32  # vectors that FAISS scans at once
_TRAINING = 40  # vectors a list that k-means wants
_ROUNDS = 8  # of k-means
_EXACT = 1000  # keys that are quicker ranked than searched


class CodedIndex:
    """Embeddings [k, p, c] by codes in memory and rows in a file.

    Keys are row numbers of the file, so they must not be negative, and the file is as long as the
    largest key says. What is removed leaves the codes, and zeros are written over its row.
    """

    def __init__(
        self,
        metric: Metric,
        sample: NDArray[np.float32],
        *,
        shortlist: int,
        folder: Path | None,
    ) -> None:
        """Make an empty index, with lists that suit a sample.

        Args:
            metric: what ranks the shortlist.
            sample: embeddings [k, p, c] like those to come, k > 0.
            shortlist: embeddings at least that are ranked exactly.
            folder: where the file is; None keeps it in memory, for embeddings that must not be
                written in plain.

        Raises:
            OSError: the folder takes no file.
        """
        _, parts, channels = sample.shape
        self._metric: Metric = metric
        self._shortlist = shortlist
        self._rows = _Rows((parts, channels), folder)
        self._in_memory = folder is None
        self._held = np.zeros(0, np.bool_)  # by key
        self._count = 0
        self._lists = max(1, min(LISTS, len(sample) // _TRAINING))
        self._centres = faiss.IndexFlatIP(parts * channels)
        self._codes: Any = faiss.IndexIVFRaBitQFastScan(
            self._centres,
            parts * channels,
            self._lists,
            faiss.METRIC_INNER_PRODUCT,
            _BLOCK,
            True,
            BITS,
        )
        self._codes.cp.niter = _ROUNDS
        self._codes.cp.min_points_per_centroid = 1  # or FAISS writes a warning to the terminal
        faiss.omp_set_num_threads(1)
        self._codes.train(index_vectors(sample[: LISTS * _TRAINING]))

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Roughly how much memory the codes take, and the rows if they are in memory."""
        each = self._codes.code_size + 8 + (self._rows.row_bytes if self._in_memory else 0)
        return int(self._count * each) + len(self._held)

    @property
    def keys(self) -> Keys:
        """The keys in use, in order."""
        return np.flatnonzero(self._held)

    def add(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings [k, p, c] under keys that are not in use.

        Raises:
            OSError: the disk is full; nothing was added.
        """
        if len(keys) == 0:
            return
        self._rows.write(keys, embeddings)
        room = int(keys.max()) + 1 - len(self._held)
        if room > 0:
            spare = max(room, len(self._held) // 8)
            self._held = np.concatenate([self._held, np.zeros(spare, np.bool_)])
        faiss.omp_set_num_threads(1)
        self._codes.add_with_ids(index_vectors(embeddings), keys)
        self._held[keys] = True
        self._count += len(keys)

    def remove(self, keys: Keys) -> None:
        """Forget embeddings; keys that are not held are ignored."""
        held = self._among(keys)
        if len(held) == 0:
            return
        sizes = self._sizes()
        self._codes.remove_ids(held)
        for number in np.flatnonzero(self._sizes() != sizes).tolist():
            self._renew_last_block(number)
        self._held[held] = False
        self._count -= len(held)
        self._rows.write(held, np.zeros((len(held), *self._rows.shape), np.float32))

    def _sizes(self) -> NDArray[np.int64]:
        lists = self._codes.invlists
        return np.array([lists.list_size(number) for number in range(self._lists)])

    def _renew_last_block(self, number: int) -> None:
        """Code the end of a list anew, in a block of zeros.

        FAISS 1.15 leaves the codes of what it removes there, and adds by OR: what came next would
        be coded wrongly.
        """
        lists = self._codes.invlists
        size = lists.list_size(number)
        whole = size // _BLOCK * _BLOCK
        keys = faiss.rev_swig_ptr(lists.get_ids(number), size)[whole:].copy()
        lists.resize(number, whole)
        self._codes.ntotal -= len(keys)
        if len(keys):
            self._codes.add_with_ids(index_vectors(self._rows.read(keys)), keys)

    def search(self, probe: Embedding, limit: int, among: Keys | None = None) -> Hits:
        """The `limit` embeddings most similar to the probe [p, c], only `among` these keys."""
        keys = self._nearest(probe, max(limit, self._shortlist), among)
        if len(keys) == 0:
            return Hits(keys, np.empty(0, np.float32))
        similarities = similarity(probe, self._rows.read(keys), self._metric)
        best = np.lexsort((keys, -similarities))[:limit]
        return Hits(keys[best], similarities[best])

    def part_similarity(self, probe: Embedding, keys: Keys) -> NDArray[np.float32]:
        """The similarity of each part to the embeddings held under `keys`: [k, p]."""
        return part_similarity(probe, self._rows.read(keys), self._metric)

    def _nearest(self, probe: Embedding, count: int, among: Keys | None) -> Keys:
        chosen = None if among is None else self._among(among)
        reachable = self._count if chosen is None else len(chosen)
        if reachable <= max(count, _EXACT):
            return self.keys if chosen is None else chosen
        parameters: Any = faiss.IVFRaBitQSearchParameters()
        parameters.qb = 8
        parameters.nprobe = self._lists
        if chosen is not None:
            # The best of a few may lie anywhere: all lists are read.
            mask = np.zeros(len(self._held), np.bool_)
            mask[chosen] = True
            selector: Any = faiss.IDSelectorBitmap
            parameters.sel = selector(np.packbits(mask, bitorder="little"))
        elif count * 100 <= reachable:
            parameters.nprobe = max(1, round(self._lists * PROBED))
        faiss.omp_set_num_threads(1)
        found = self._codes.search(index_vectors(probe[None]), count, params=parameters)[1][0]
        return np.asarray(found[found >= 0], np.int64)

    def _among(self, keys: Keys) -> Keys:
        inside = keys[(keys >= 0) & (keys < len(self._held))]
        return np.unique(inside[self._held[inside]])


class _Rows:
    """Embeddings [p, c] in a file without a name, a row a key.

    Read and written, not mapped: so its pages are the kernel's to keep or drop, and a full disk is
    an error, not a signal.
    """

    def __init__(self, shape: tuple[int, int], folder: Path | None) -> None:
        self.shape = shape
        self.row_bytes = 4 * shape[0] * shape[1]
        if folder is None:
            self._file = os.memfd_create("embeddings")
        else:
            with tempfile.TemporaryFile(dir=folder) as file:  # mode 0600, and no name
                self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def write(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        """Write rows [k, p, c]; neighbours in one go."""
        order = np.argsort(keys)
        rows = np.ascontiguousarray(embeddings[order], np.float32)
        starts = np.flatnonzero(np.diff(keys[order], prepend=-2) != 1)
        for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
            data = memoryview(rows[start:end].data).cast("B")
            at = int(keys[order[start]]) * self.row_bytes
            while data:
                written = os.pwrite(self._file, data, at)
                data, at = data[written:], at + written

    def read(self, keys: Keys) -> NDArray[np.float32]:
        """The rows [k, p, c] of keys that were written."""
        rows = np.empty((len(keys), *self.shape), np.float32)
        for row, key in zip(rows, keys.tolist(), strict=True):
            if os.preadv(self._file, [row.data], key * self.row_bytes) != self.row_bytes:
                raise OSError(f"the embedding of key {key} is not in the file")
        return rows

"""The index of a large gallery: two bits a number find a shortlist, full embeddings rank it.

Index vectors are seen from the three quarters of all directions in which they differ most. They
lie in lists around centres, each number coded in two bits (RaBitQ, as FAISS has it): 124 bytes for
a walk of 512 numbers. A search reads the nearest lists. Its shortlist is ranked by
the embeddings themselves. These are the database's; a file without a name repeats those that came
or were asked for, because it is quicker. The page cache has what is used of it, and it is gone with
the process.

How lists, bits, directions and share were chosen: `benchmarks.search`, docs/benchmarks.md.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.similarity import index_vectors, part_similarity, similarity
from service.gallery.index import Hits, Keys
from service.gallery.records import Embedding

LISTS = 512
PROBED = 0.4  # of the lists, by a search of all keys for a few
FILTERED = 0.5  # of the lists, by one of many keys: their nearest lie further away
BITS = 2
SAMPLE = 160 * LISTS  # vectors that centres are made of, if there are so many
_BLOCK = 32  # vectors that FAISS scans at once
_TRAINING = 40  # vectors a list that k-means wants
_ROUNDS = 8  # of k-means
_EXACT = 1000  # keys that are quicker ranked than searched

Stored = Callable[[Keys], tuple[Keys, NDArray[np.float32]]]
"""Reads embeddings [k, p, c] from the database; keys of what is gone from there are left out."""


class Lists(NamedTuple):
    """How vectors of v numbers are coded, as d numbers in l lists.

    Attributes:
        directions: of unit length, float32 [v, d], from which vectors are seen.
        centres: of the lists, so seen, float32 [l, d].
    """

    directions: NDArray[np.float32]
    centres: NDArray[np.float32]


class Codes(NamedTuple):
    """What a `CodedIndex` has in memory, as arrays, of k keys.

    Attributes:
        lists: how they are coded.
        sizes: of the lists, int64 [l].
        keys: list after list, int64 [k].
        blocks: FAISS's blocks of codes, list after list, uint8.
    """

    lists: Lists
    sizes: NDArray[np.int64]
    keys: Keys
    blocks: NDArray[np.uint8]


class CodedIndex:
    """Embeddings [k, p, c] by codes in memory and rows in a file.

    Keys are row numbers of the file, so they must not be negative, and the file is as long as the
    largest key says. What is removed leaves the codes, and zeros are written over its row.
    """

    def __init__(
        self,
        metric: Metric,
        shape: tuple[int, int],
        lists: Lists,
        stored: Stored,
        *,
        shortlist: int,
        folder: Path | None,
    ) -> None:
        """Make an empty index.

        Args:
            metric: what ranks the shortlist.
            shape: p and c.
            lists: how embeddings are coded.
            stored: reads the embeddings that the file has not got.
            shortlist: embeddings at least that are ranked exactly.
            folder: where the file is; None: there is none, for embeddings that must not be written
                in plain.

        Raises:
            OSError: the folder takes no file.
        """
        self._metric: Metric = metric
        self._shape = shape
        self._stored = stored
        self._shortlist = shortlist
        self._rows = None if folder is None else _Rows(shape, folder)
        self._held = np.zeros(0, np.bool_)  # by key
        self._count = 0
        self._how = lists
        self._lists, numbers = lists.centres.shape
        self._quantizer = faiss.IndexFlatL2(numbers)  # of vectors of one length: as by cosine
        self._quantizer.add(lists.centres)
        self._codes: Any = faiss.IndexIVFRaBitQFastScan(
            self._quantizer, numbers, self._lists, faiss.METRIC_INNER_PRODUCT, _BLOCK, True, BITS
        )
        self._codes.is_trained = True
        invlists: Any = self._codes.invlists
        self._blocks: Any = faiss.downcast_InvertedLists(invlists)

    @classmethod
    def restored(
        cls,
        metric: Metric,
        shape: tuple[int, int],
        codes: Codes,
        stored: Stored,
        *,
        shortlist: int,
        folder: Path | None,
    ) -> Self:
        """Make an index of codes that were kept; raises `ValueError` if they do not fit together.

        Its file is empty, so what is asked for first is read from the database.
        """
        directions, centres = codes.lists
        vector = shape[0] * shape[1]
        numbers = _coded(vector)
        if directions.shape != (vector, numbers) or centres.shape != (len(codes.sizes), numbers):
            raise ValueError("the lists are of other vectors")
        index = cls(metric, shape, codes.lists, stored, shortlist=shortlist, folder=folder)
        index._fill(codes)
        return index

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Roughly how much memory the codes take."""
        return int(self._count * (self._codes.code_size + 8)) + 2 * len(self._held)

    @property
    def keys(self) -> Keys:
        """The keys in use, in order."""
        return np.flatnonzero(self._held)

    @property
    def codes(self) -> Codes:
        """A copy of what is in memory."""
        sizes = self._sizes()
        numbers = range(self._lists)
        return Codes(
            self._how,
            sizes,
            np.concatenate([self._keys_of(number).copy() for number in numbers]),
            np.concatenate([self._blocks_of(number).ravel() for number in numbers]),
        )

    def add(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings [k, p, c] under keys that are not in use.

        Raises:
            OSError: the disk is full; nothing was added.
        """
        if len(keys) == 0:
            return
        if self._rows is not None:
            self._rows.write(keys, embeddings)
        self._make_room(int(keys.max()))
        faiss.omp_set_num_threads(1)
        self._codes.add_with_ids(_seen(embeddings, self._how.directions), keys)
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
            self._clean_last_block(number)
        self._held[held] = False
        self._count -= len(held)
        if self._rows is not None:
            self._rows.erase(held)

    def search(self, probe: Embedding, limit: int, among: Keys | None = None) -> Hits:
        """The `limit` embeddings most similar to the probe [p, c], only `among` these keys."""
        keys = self._nearest(probe, max(limit, self._shortlist), among)
        if len(keys) == 0:
            return Hits(keys, np.empty(0, np.float32))
        keys, embeddings = self._read(keys)
        similarities = similarity(probe, embeddings, self._metric)
        best = np.lexsort((keys, -similarities))[:limit]
        return Hits(keys[best], similarities[best])

    def part_similarity(self, probe: Embedding, keys: Keys) -> NDArray[np.float32]:
        """The similarity of each part to the embeddings held under `keys`: [k, p]."""
        found, embeddings = self._read(keys)
        row = {key: number for number, key in enumerate(keys.tolist())}
        parts = np.zeros((len(keys), self._shape[0]), np.float32)  # as for what was just erased
        parts[[row[key] for key in found.tolist()]] = part_similarity(
            probe, embeddings, self._metric
        )
        return parts

    def _nearest(self, probe: Embedding, count: int, among: Keys | None) -> Keys:
        chosen = None if among is None else self._among(among)
        reachable = self._count if chosen is None else len(chosen)
        if reachable <= max(count, _EXACT):
            return self.keys if chosen is None else chosen
        parameters: Any = faiss.IVFRaBitQSearchParameters()
        parameters.qb = 8
        # The best of a few may lie anywhere: all lists are read.
        share = 1.0 if count * 100 > reachable else PROBED if chosen is None else FILTERED
        parameters.nprobe = max(1, round(self._lists * share))
        if chosen is not None:
            mask = np.zeros(len(self._held), np.bool_)
            mask[chosen] = True
            selector: Any = faiss.IDSelectorBitmap
            parameters.sel = selector(np.packbits(mask, bitorder="little"))
        faiss.omp_set_num_threads(1)
        query = _seen(probe[None], self._how.directions)
        found = self._codes.search(query, count, params=parameters)[1][0]
        return np.asarray(found[found >= 0], np.int64)

    def _read(self, keys: Keys) -> tuple[Keys, NDArray[np.float32]]:
        """Embeddings [k, p, c], and whose they are: what the database has erased is left out."""
        if self._rows is None:
            return self._stored(keys)
        known = self._rows.written(keys)
        if not known.all():
            came, embeddings = self._stored(keys[~known])
            try:
                self._rows.write(came, embeddings)
            except OSError:  # a full disk
                return self._stored(keys)
            keys = np.concatenate([keys[known], came])
        return keys, self._rows.read(keys)

    def _among(self, keys: Keys) -> Keys:
        inside = keys[(keys >= 0) & (keys < len(self._held))]
        chosen = np.zeros(len(self._held), np.bool_)
        chosen[inside] = True
        return np.flatnonzero(chosen & self._held)

    def _make_room(self, largest: int) -> None:
        room = largest + 1 - len(self._held)
        if room > 0:
            spare = max(room, len(self._held) // 8)
            self._held = np.concatenate([self._held, np.zeros(spare, np.bool_)])

    def _sizes(self) -> NDArray[np.int64]:
        return np.array([self._blocks.list_size(number) for number in range(self._lists)], np.int64)

    def _keys_of(self, number: int) -> Keys:
        """The keys of a list: FAISS's own memory."""
        size = self._blocks.list_size(number)
        keys: Keys = faiss.rev_swig_ptr(self._blocks.get_ids(number), size)
        return keys

    def _blocks_of(self, number: int) -> NDArray[np.uint8]:
        """The blocks [b, bytes] of a list: FAISS's own memory."""
        count = -(-self._blocks.list_size(number) // _BLOCK)
        size = self._blocks.block_size
        blocks: NDArray[np.uint8] = faiss.rev_swig_ptr(
            self._blocks.get_codes(number), count * size
        ).reshape(count, size)
        return blocks

    def _clean_last_block(self, number: int) -> None:
        """Leave nothing in a list's last block but the codes that are in use.

        FAISS 1.15 leaves the codes of what it removes there, and adds by OR: what came next would
        be coded wrongly.
        """
        used = self._blocks.list_size(number) % _BLOCK
        if used == 0:
            return
        last = self._blocks_of(number)[-1:]
        kept = [self._blocks.packer.unpack_1(last, position) for position in range(used)]
        last[:] = 0
        for position, code in enumerate(kept):
            self._blocks.packer.pack_1(code, position, last)

    def _fill(self, codes: Codes) -> None:
        sizes, size = codes.sizes, self._blocks.block_size
        counts = -(-sizes // _BLOCK)
        if (
            (sizes < 0).any()
            or sizes.sum() != len(codes.keys)
            or counts.sum() * size != len(codes.blocks)
            or (codes.keys < 0).any()
        ):
            raise ValueError("the lists do not fit together")
        if len(codes.keys) == 0:
            return
        self._make_room(int(codes.keys.max()))
        self._held[codes.keys] = True
        self._count = int(self._held.sum())
        if self._count != len(codes.keys):
            raise ValueError("a key is in two lists")
        blocks = codes.blocks.reshape(-1, size)
        key = block = 0
        for number, (held, count) in enumerate(zip(sizes.tolist(), counts.tolist(), strict=True)):
            if held:
                self._blocks.resize(number, held)
                self._keys_of(number)[:] = codes.keys[key : key + held]
                self._blocks_of(number)[:] = blocks[block : block + count]
            key, block = key + held, block + count
        self._codes.ntotal = self._count


def lists_for(sample: NDArray[np.float32]) -> Lists:
    """Lists that suit a sample of embeddings [k, p, c], k > 0."""
    directions = _directions(index_vectors(sample))
    kmeans: Any = faiss.Kmeans(
        directions.shape[1],
        max(1, min(LISTS, len(sample) // _TRAINING)),
        niter=_ROUNDS,
        min_points_per_centroid=1,  # or FAISS writes a warning to the terminal
        max_points_per_centroid=len(sample),
    )
    faiss.omp_set_num_threads(1)
    kmeans.train(_seen(sample, directions))
    return Lists(directions, np.asarray(kmeans.centroids, np.float32))


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Those [v, d] from which vectors [k, v] look longest, turned at random.

    Turned because numbers that are evenly spread lose less when they are coded.
    """
    longest = np.linalg.eigh(vectors.T @ vectors)[1][:, -_coded(vectors.shape[1]) :]
    noise = np.random.default_rng(0).standard_normal((longest.shape[1],) * 2)
    return np.asarray(longest @ np.linalg.qr(noise)[0], np.float32)


def _coded(numbers: int) -> int:
    """How many numbers are coded of vectors of so many."""
    return -(-3 * numbers // 4)


def _seen(embeddings: NDArray[np.float32], directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Index vectors of embeddings [k, p, c] from directions [p * c, d]: [k, d]."""
    return np.asarray(index_vectors(embeddings) @ directions, np.float32)


class _Rows:
    """Embeddings [p, c] in a file without a name, a row a key.

    Read and written, not mapped: so its pages are the kernel's to keep or drop, and a full disk is
    an error, not a signal.
    """

    def __init__(self, shape: tuple[int, int], folder: Path) -> None:
        self._shape = shape
        self._row_bytes = 4 * shape[0] * shape[1]
        self._written = np.zeros(0, np.bool_)  # by key
        with tempfile.TemporaryFile(dir=folder) as file:  # mode 0600, and no name
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def written(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether each key has its row [k]."""
        there = np.zeros(len(keys), np.bool_)
        inside = keys < len(self._written)
        there[inside] = self._written[keys[inside]]
        return there

    def write(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        """Write rows [k, p, c]; neighbours in one go."""
        if len(keys) == 0:
            return
        order = np.argsort(keys)
        rows = np.ascontiguousarray(embeddings[order], np.float32)
        starts = np.flatnonzero(np.diff(keys[order], prepend=-2) != 1)
        for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
            data = memoryview(rows[start:end].data).cast("B")
            at = int(keys[order[start]]) * self._row_bytes
            while data:
                written = os.pwrite(self._file, data, at)
                data, at = data[written:], at + written
        room = int(keys.max()) + 1 - len(self._written)
        if room > 0:
            spare = max(room, len(self._written) // 8)
            self._written = np.concatenate([self._written, np.zeros(spare, np.bool_)])
        self._written[keys] = True

    def erase(self, keys: Keys) -> None:
        """Write zeros over the rows of these keys that there are."""
        there = keys[self.written(keys)]
        self.write(there, np.zeros((len(there), *self._shape), np.float32))
        self._written[there] = False

    def read(self, keys: Keys) -> NDArray[np.float32]:
        """The rows [k, p, c] of keys that were written."""
        rows = np.empty((len(keys), *self._shape), np.float32)
        for row, key in zip(rows, keys.tolist(), strict=True):
            if os.preadv(self._file, [row.data], key * self._row_bytes) != self._row_bytes:
                raise OSError(f"the embedding of key {key} is not in the file")
        return rows

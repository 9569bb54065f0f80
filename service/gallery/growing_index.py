"""An index that compares everything while that is fast, and codes a gallery that has grown."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from models.card import Metric
from service.foundation.errors import Unavailable
from service.gallery.coded_index import SAMPLE, CodedIndex, Codes, Stored, lists_for
from service.gallery.faiss_index import FaissIndex
from service.gallery.index import Hits, Keys
from service.gallery.records import Embedding

_AGAIN = 8  # times as many embeddings: the lists are made anew, of a wider sample
_PIECE = 2048  # embeddings that are read at once

_log = logging.getLogger(__name__)


class GrowingIndex:
    """A `FaissIndex` up to a size, a `CodedIndex` from there on.

    Codes are made in a thread from what the database has, while the index that there is goes on
    serving; the call that finds them ready catches up with what came and went meanwhile. The lists
    are those of whoever was enrolled first, so codes are made again when there are many more.
    """

    def __init__(
        self,
        parts: int,
        channels: int,
        metric: Metric,
        stored: Stored,
        *,
        shortlist: int,
        exact_below: int,
        folder: Path | None,
    ) -> None:
        """Make an empty index.

        Args:
            parts: p.
            channels: c.
            metric: what ranks the shortlist.
            stored: reads embeddings from the database, from any thread.
            shortlist: embeddings at least that are ranked exactly.
            exact_below: the size at which codes are made.
            folder: where a `CodedIndex` has its file; None: it has none.
        """
        self._shape = (parts, channels)
        self._metric: Metric = metric
        self._stored = stored
        self._shortlist = shortlist
        self._code_at = exact_below
        self._folder = folder
        self._index: FaissIndex | CodedIndex = FaissIndex(
            parts, channels, metric, shortlist=shortlist
        )
        self._coding: Future[CodedIndex] | None = None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Roughly how much memory the embeddings or their codes take."""
        return self._index.nbytes

    @property
    def codes(self) -> Codes | None:
        """A copy of the codes; None while everything is compared, or codes are being made."""
        index = self._current()
        return index.codes if isinstance(index, CodedIndex) and self._coding is None else None

    def restore(self, codes: Codes) -> None:
        """Begin with codes that were kept; raises `ValueError` if they do not fit together."""
        self._index = CodedIndex.restored(
            self._metric,
            self._shape,
            codes,
            self._stored,
            shortlist=self._shortlist,
            folder=self._folder,
        )
        self._code_at = max(self._code_at, _AGAIN * len(self._index))

    def add(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings [k, p, c] under keys that are not in use."""
        index = self._current()
        index.add(keys, embeddings)
        if self._coding is None and len(index) >= self._code_at:
            thread = ThreadPoolExecutor(1, thread_name_prefix="codes")
            self._coding = thread.submit(self._code, index.keys)
            thread.shutdown(wait=False)

    def remove(self, keys: Keys) -> None:
        """Forget embeddings; keys that are not held are ignored."""
        self._current().remove(keys)

    def search(self, probe: Embedding, limit: int, among: Keys | None = None) -> Hits:
        """The `limit` embeddings most similar to the probe [p, c], only `among` these keys."""
        return self._current().search(probe, limit, among)

    def part_similarity(self, probe: Embedding, keys: Keys) -> NDArray[np.float32]:
        """The similarity of each part to the embeddings held under `keys`: [k, p]."""
        return self._current().part_similarity(probe, keys)

    def _code(self, keys: Keys) -> CodedIndex:
        sample = keys[:: -(-len(keys) // SAMPLE)]
        coded = CodedIndex(
            self._metric,
            self._shape,
            lists_for(np.concatenate([embeddings for _, embeddings in self._read(sample)])),
            self._stored,
            shortlist=self._shortlist,
            folder=self._folder,
        )
        self._add_stored(coded, keys)
        return coded

    def _add_stored(self, coded: CodedIndex, keys: Keys) -> None:
        for found, embeddings in self._read(keys):
            coded.add(found, embeddings)

    def _read(self, keys: Keys) -> Iterator[tuple[Keys, NDArray[np.float32]]]:
        for start in range(0, len(keys), _PIECE):
            yield self._stored(keys[start : start + _PIECE])

    def _current(self) -> FaissIndex | CodedIndex:
        """The index to use: the codes as soon as they are made."""
        before = self._index
        if self._coding is None or not self._coding.done():
            return before
        coding, self._coding = self._coding, None
        self._code_at = _AGAIN * len(before)
        try:
            coded = coding.result()
            coded.remove(np.setdiff1d(coded.keys, before.keys))
            self._add_stored(coded, np.setdiff1d(before.keys, coded.keys))
        except (OSError, SQLAlchemyError, Unavailable) as error:  # a full disk, a busy database
            self._code_at = 2 * len(before)
            _log.warning("a gallery keeps its index until it has doubled: %s", error)
        else:
            self._index = coded
        return self._index

"""An index that compares everything while that is fast, and codes a gallery that has grown."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.card import Metric
from service.gallery.coded_index import CodedIndex
from service.gallery.faiss_index import FaissIndex
from service.gallery.index import Hits, Keys
from service.gallery.records import Embedding

_log = logging.getLogger(__name__)


class GrowingIndex:
    """A `FaissIndex` up to a size, a `CodedIndex` from there on.

    Codes are made in a thread from a copy, while the exact index goes on serving; the call that
    finds them ready catches up with what came and went meanwhile.
    """

    def __init__(
        self,
        parts: int,
        channels: int,
        metric: Metric,
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
            shortlist: embeddings at least that are ranked exactly.
            exact_below: the size at which codes are made.
            folder: where a `CodedIndex` has its file; None: in memory.
        """
        self._metric: Metric = metric
        self._shortlist = shortlist
        self._exact_below = exact_below
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

    def add(self, keys: Keys, embeddings: NDArray[np.float32]) -> None:
        """Add embeddings [k, p, c] under keys that are not in use."""
        self._current().add(keys, embeddings)
        index = self._index
        if (
            isinstance(index, FaissIndex)
            and self._coding is None
            and len(index) >= self._exact_below
        ):
            held = index.keys
            thread = ThreadPoolExecutor(1, thread_name_prefix="codes")
            self._coding = thread.submit(self._code, held, index.embeddings(held))
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

    def _code(self, keys: Keys, embeddings: NDArray[np.float32]) -> CodedIndex:
        coded = CodedIndex(self._metric, embeddings, shortlist=self._shortlist, folder=self._folder)
        coded.add(keys, embeddings)
        return coded

    def _current(self) -> FaissIndex | CodedIndex:
        """The index to use: the codes as soon as they are made."""
        exact = self._index
        if self._coding is None or not self._coding.done() or isinstance(exact, CodedIndex):
            return exact
        coding, self._coding = self._coding, None
        try:
            coded = coding.result()
            coded.remove(np.setdiff1d(coded.keys, exact.keys))
            came = np.setdiff1d(exact.keys, coded.keys)
            coded.add(came, exact.embeddings(came))
        except OSError as error:  # a full disk
            self._exact_below = 2 * len(exact)
            _log.warning("a gallery stays in memory until it has doubled: %s", error)
        else:
            self._index = coded
        return self._index

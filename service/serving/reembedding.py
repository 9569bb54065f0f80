"""Re-embedding: embed stored sequences with a checkpoint that has not embedded them yet.

It may be about to be activated, may have been replaced on disk, or another process may enrol with
another one. Every batch is kept at once, so an interrupted run resumes where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from service.foundation.errors import NotFound
from service.gallery.records import Embedding, Progress, Silhouettes
from service.gallery.store import GalleryStore
from service.serving.batching import Encode
from service.storage.database import in_pieces

_AT_ONCE = 32  # sequences in memory: 1000 frames each are 4 MB


class Reembedding:
    """Embeds stored sequences with one checkpoint and keeps the result."""

    def __init__(self, store: GalleryStore, encode: Encode, digest: str) -> None:
        self._store = store
        self._encode = encode
        self._digest = digest

    def everything(self, progress: Progress, gallery_id: str | None = None) -> int:
        """Embed every sequence, of one gallery or of all, that is not embedded.

        Returns how many were embedded.
        """
        total = self._store.count_without(self._digest, gallery_id)
        done = 0
        after = ""
        while True:
            batch = self._store.some_without(self._digest, _AT_ONCE, gallery_id, after)
            if batch:
                progress(done, max(total, done + len(batch)))
                self._embed(batch)
                done += len(batch)
                after = batch[-1][0]
            elif after:  # what was enrolled meanwhile may have ids before the last one's
                after = ""
            else:
                return done

    def some(self, sequence_ids: Sequence[str]) -> dict[str, Embedding]:
        """Embed these sequences; those erased meanwhile are missing from the answer."""
        made: dict[str, Embedding] = {}
        for some in in_pieces(sequence_ids, _AT_ONCE):
            made.update(self._embed(list(self._stored(some))))
        return made

    def _stored(self, sequence_ids: Sequence[str]) -> Iterator[tuple[str, Silhouettes]]:
        for sequence_id in sequence_ids:
            try:
                yield sequence_id, self._store.silhouettes(sequence_id)
            except NotFound:  # erased meanwhile: there is nothing to embed
                continue

    def _embed(self, batch: Sequence[tuple[str, Silhouettes]]) -> dict[str, Embedding]:
        embeddings = self._encode([silhouettes for _, silhouettes in batch])
        made = dict(zip((key for key, _ in batch), embeddings, strict=True))
        self._store.add_embeddings(self._digest, made.items())
        return made

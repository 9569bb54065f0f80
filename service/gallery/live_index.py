"""A live index: one gallery under one checkpoint, in memory, kept current with the database.

Each search names the revision that it must include, and the index first applies the changes up to
it. So clients read their own writes, and any number of processes serve one gallery.

An index has one scene transform, or none, for its whole life: what it holds and what it is asked
for go through the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from service.foundation.errors import Unavailable
from service.gallery.growing_index import GrowingIndex
from service.gallery.index import GalleryIndex, Keys
from service.gallery.ranking import Candidate, GallerySearch, Ranking
from service.gallery.records import Changes, Embedding
from service.gallery.roster import Filter, Roster, listed
from service.gallery.scenes import Scene
from service.gallery.snapshots import Snapshot, Snapshots
from service.gallery.store import GalleryStore

_GROWN = 1.02  # times as many sequences: a snapshot is written anew
_REST_S = 600.0  # between two snapshots: erasing people one by one must not write without end

_log = logging.getLogger(__name__)

EmbedMissing = Callable[[Sequence[str]], Mapping[str, Embedding]]
"""Embeds stored sequences that this checkpoint has not embedded, and keeps the result."""


class LiveIndex:
    """The index of a gallery, with what a search needs to know of each sequence."""

    def __init__(
        self,
        gallery_id: str,
        digest: str,
        index: GalleryIndex,
        store: GalleryStore,
        embed_missing: EmbedMissing,
        *,
        scene: Scene | None = None,
        roster: Roster | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """Make an index that has applied nothing yet.

        Args:
            gallery_id: the gallery.
            digest: the checkpoint's.
            index: empty, of the shape and metric that `scene`, if any, makes of embeddings.
            store: the database.
            embed_missing: embeds what the checkpoint has not embedded.
            scene: the transform through which everything is compared.
            roster: empty, for an index that reads embeddings by its keys.
            snapshots: where a large index is kept for the next start.
        """
        self.scene = scene
        self._gallery_id = gallery_id
        self._digest = digest
        self._index = index
        self._store = store
        self._embed_missing = embed_missing
        self._lock = threading.Lock()
        self._revision = 0
        self._roster = Roster() if roster is None else roster
        self._ranking = Ranking(index, self._roster, store, digest, scene)
        self._snapshots = snapshots
        self._version = ""
        self._kept = 0  # sequences in the last snapshot
        self._rest_until = 0.0

    @property
    def scene_version(self) -> str | None:
        """The version of the scene transform that it compares by."""
        return None if self.scene is None else self.scene.version

    @property
    def nbytes(self) -> int:
        """Roughly how much memory the index takes."""
        return self._index.nbytes

    @property
    def subjects(self) -> int:
        """How many subjects there are, as of the last revision that was applied."""
        return self._roster.subjects

    def same_as(self, other: GallerySearch) -> bool:
        """Whether both hold the same sequences; True as well if their revisions differ."""
        if not isinstance(other, LiveIndex):
            return False
        with self._lock:
            revision, held = self._revision, self._roster.sequence_ids()
        with other._lock:
            return revision != other._revision or held == other._roster.sequence_ids()

    def follow(self, newest: int) -> None:
        """Apply the changes up to revision `newest`, at least."""
        with self._lock:
            self._follow(newest)

    def forget(self, sequence_ids: Iterable[str]) -> None:
        """Drop sequences that were erased; nothing is read or embedded."""
        with self._lock:
            self._drop(sequence_ids)

    def search(
        self,
        newest: int,
        probes: Embedding,
        subjects: int,
        *,
        where: Filter | None = None,
        view: str | None = None,
        explain: bool = False,
    ) -> list[Candidate]:
        """See `GallerySearch.search`."""
        with self._lock:
            self._follow(newest)
            among = None if not where else self._roster.matching(where)
            return self._ranking.best(probes, subjects, among, view=view, explain=explain)

    def compare(
        self, newest: int, probes: Embedding, subject_id: str, *, view: str | None = None
    ) -> Candidate | None:
        """How the subject resembles the probes; None when there is no such subject."""
        with self._lock:
            self._follow(newest)
            keys = self._roster.of_subject(subject_id)
            return next(iter(self._ranking.best(probes, 1, keys, view=view)), None)

    def keep(self) -> None:
        """Write a snapshot of a large gallery, if there is none or it has grown; every so often."""
        with self._lock:
            index, now = self._index, time.monotonic()
            if (
                self._snapshots is None
                or not isinstance(index, GrowingIndex)
                or now < self._rest_until
                or (
                    len(self._roster) < _GROWN * self._kept
                    and self._snapshots.exists(self._gallery_id, self._digest)
                )
                or (codes := index.codes) is None
            ):
                return
            (keys, entries), revision = self._roster.entries(), self._revision
            self._rest_until = now + _REST_S
        codes = codes._replace(keys=np.searchsorted(keys, codes.keys))
        snapshot = Snapshot(self._version, revision, listed(entries), codes)
        try:
            if self._snapshots.save(self._gallery_id, self._digest, snapshot):
                self._kept = len(entries)
        except (OSError, SQLAlchemyError, Unavailable) as error:  # a full disk, say
            _log.warning("the next start must do without a snapshot: %s", error)

    def _follow(self, newest: int) -> None:
        if self._revision == 0 < newest and self._snapshots is not None:
            self._begin(self._snapshots)
        while self._revision < newest:
            changes = self._store.changes(self._gallery_id, self._revision, self._digest)
            missing = [item.sequence_id for item in changes.added if item.embedding is None]
            made = self._embed_missing(missing) if missing else {}
            self._apply(changes, made)

    def _apply(self, changes: Changes, made: Mapping[str, Embedding]) -> None:
        self._drop(changes.erased)  # first: what was corrected comes again
        embedded = [
            (item, embedding)
            for item in changes.added
            # None: erased before it could be embedded, as a later revision will say.
            if (embedding := made.get(item.sequence_id, item.embedding)) is not None
        ]
        if embedded:
            keys = self._roster.add([item for item, _ in embedded])
            self._index.add(
                keys, self._ranking.seen(np.stack([embedding for _, embedding in embedded]))
            )
        self._revision = changes.revision

    def _drop(self, sequence_ids: Iterable[str]) -> None:
        self._index.remove(self._roster.remove(sequence_ids))

    def _begin(self, snapshots: Snapshots) -> None:
        """Begin with the snapshot, if there is one that fits."""
        self._version = snapshots.version(self._gallery_id, self.scene_version)
        kept = snapshots.load(self._gallery_id, self._digest)
        if kept is None or not isinstance(self._index, GrowingIndex):
            return
        try:
            self._index.restore(kept.codes)
        except ValueError as error:
            _log.warning("a snapshot is not used: %s", error)
            return
        self._roster.restore(kept.listing)
        self._revision, self._kept = kept.revision, len(kept.listing.sequence_ids)
        _log.info("an index begins with its snapshot", extra={"sequences": self._kept})


def stored_embeddings(
    store: GalleryStore,
    digest: str,
    shape: tuple[int, int],
    scene: Scene | None,
    roster: Roster,
    keys: Keys,
) -> tuple[Keys, NDArray[np.float32]]:
    """What an index holds of its keys, from the database, and which those keys are.

    Args:
        store: the database.
        digest: the checkpoint's.
        shape: of its embeddings, [p, c].
        scene: the index's.
        roster: the index's.
        keys: [k]; without those that are gone.
    """
    named = roster.named(keys)
    found = store.embeddings(digest, named)
    embeddings = np.empty((len(found), *shape), np.float32)
    for row, (_, embedding) in enumerate(found):
        embeddings[row] = embedding
    seen = embeddings if scene is None else scene.embeddings(embeddings)
    return np.array([named[sequence_id] for sequence_id, _ in found], np.int64), seen

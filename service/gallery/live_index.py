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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from models.comparison.similarity import part_similarity
from service.foundation.errors import Unavailable
from service.gallery.growing_index import GrowingIndex
from service.gallery.index import GalleryIndex, Hits, Keys
from service.gallery.records import Changes, Embedding
from service.gallery.roster import Filter, Roster, listed
from service.gallery.scenes import Scene, scored
from service.gallery.snapshots import Snapshot, Snapshots
from service.gallery.store import GalleryStore

_AT_FIRST = 100  # sequences that a search asks its index for, which ranks as many anyway
_GROWN = 1.02  # times as many sequences: a snapshot is written anew
_REST_S = 600.0  # between two snapshots: erasing people one by one must not write without end

_log = logging.getLogger(__name__)

EmbedMissing = Callable[[Sequence[str]], Mapping[str, Embedding]]
"""Embeds stored sequences that this checkpoint has not embedded, and keeps the result."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subject that resembles the probe; `sequence_id` is its most similar sequence.

    `seen_from_this_view` says whether the subject has a sequence in the probe's view; None where
    that view, or the view of some sequence, was not said.
    """

    subject_id: str
    sequence_id: str
    similarity: float
    parts: tuple[float, ...] | None
    seen_from_this_view: bool | None = None


_Scores = dict[str, tuple[int, float]]
"""Of subjects the key of the best sequence, and how alike they are."""


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

    def same_as(self, other: LiveIndex) -> bool:
        """Whether both hold the same sequences; True as well if their revisions differ."""
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
        """The `subjects` most similar subjects, best first.

        Without a scene transform by their best sequence, with one by all of them (`scenes.scored`):
        of those subjects whose best sequence is among the nearest.

        Args:
            newest: a revision that the answer must include.
            probes: a walk [p, c], or several of one person [m, p, c], which are fused.
            subjects: how many are asked for.
            where: restricts the search.
            view: of the probes, for `Candidate.seen_from_this_view`.
            explain: whether candidates are to have `parts`.
        """
        with self._lock:
            self._follow(newest)
            among = None if not where else self._roster.matching(where)
            return self._best(probes, subjects, among, view=view, explain=explain)

    def compare(
        self, newest: int, probes: Embedding, subject_id: str, *, view: str | None = None
    ) -> Candidate | None:
        """How the subject resembles the probes; None when there is no such subject."""
        with self._lock:
            self._follow(newest)
            keys = self._roster.of_subject(subject_id)
            return next(iter(self._best(probes, 1, keys, view=view, explain=False)), None)

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

    def _best(
        self,
        probes: Embedding,
        subjects: int,
        among: Keys | None,
        *,
        view: str | None,
        explain: bool,
    ) -> list[Candidate]:
        probes = probes[None] if probes.ndim == 2 else probes
        seen = self._seen(probes)
        nearest = [self._nearest(probe, subjects, among) for probe in seen]
        if nearest[0] and (len(nearest) > 1 or self.scene is not None):
            # Whom one probe resembles the others are compared with too, and by all sequences.
            met = {subject_id for found in nearest for subject_id in found}
            keys = np.concatenate([self._roster.of_subject(subject_id) for subject_id in met])
            keys = keys if among is None else np.intersect1d(keys, among)
            nearest = [self._scores(self._index.search(one, len(keys), keys)) for one in seen]
        fused = {
            subject_id: fuse([found[subject_id][1] for found in nearest])
            for subject_id in nearest[0]
            # Not everywhere: erased by another process while the probes were compared.
            if all(subject_id in found for found in nearest)
        }
        candidates = []
        for subject_id in sorted(fused, key=lambda one: -fused[one])[:subjects]:
            keys_of = [found[subject_id][0] for found in nearest]
            best = max(range(len(nearest)), key=lambda row: nearest[row][subject_id][1])
            candidates.append(
                Candidate(
                    subject_id=subject_id,
                    sequence_id=self._roster[keys_of[best]].sequence_id,
                    similarity=fused[subject_id],
                    parts=self._parts(probes, keys_of) if explain else None,
                    seen_from_this_view=self._seen_from(subject_id, view),
                )
            )
        return candidates

    def _nearest(self, probe: Embedding, subjects: int, among: Keys | None) -> _Scores:
        """At least so many subjects, if there are."""
        reachable = len(self._index) if among is None else len(among)
        subjects = (  # there may not be as many
            min(subjects, self.subjects)
            if among is None
            else self._roster.count_subjects(among, subjects)
        )
        wanted = max(subjects, _AT_FIRST)
        while True:
            # Subjects with many sequences may fill a shortlist: widen it until there are enough.
            scores = self._scores(self._index.search(probe, wanted, among))
            if len(scores) >= subjects or wanted >= reachable:
                return scores
            wanted *= 4

    def _scores(self, hits: Hits) -> _Scores:
        keys = hits.keys.tolist()
        whose = [self._roster[key].subject_id for key in keys]
        found = scored(hits.similarities, whose, self.scene)
        return {subject_id: (keys[row], score) for subject_id, (row, score) in found.items()}

    def _parts(self, probes: Embedding, keys: Sequence[int]) -> tuple[float, ...] | None:
        """The similarity of each part of probes [m, p, c] to m sequences, on average.

        A scene transform mixes the parts, so with one they are compared as the checkpoint made
        them. None if the sequences were erased a moment ago.
        """
        if self.scene is None:
            alike = [
                self._index.part_similarity(probe, np.array([key], np.int64))
                for probe, key in zip(probes, keys, strict=True)
            ]
        else:
            ids = [self._roster[key].sequence_id for key in keys]
            stored = dict(self._store.embeddings(self._digest, ids))
            alike = [
                part_similarity(probe, stored[one][None], "cosine")
                for probe, one in zip(probes, ids, strict=True)
                if one in stored
            ]
        return tuple(np.concatenate(alike).mean(axis=0).tolist()) if alike else None

    def _seen_from(self, subject_id: str, view: str | None) -> bool | None:
        if view is None:
            return None
        views = self._roster.views_of(subject_id)
        return True if view in views else (None if None in views else False)

    def _seen(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings [n, p, c] as the index holds them."""
        return embeddings if self.scene is None else self.scene.embeddings(embeddings)

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
            self._index.add(keys, self._seen(np.stack([embedding for _, embedding in embedded])))
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


def fuse(similarities: Sequence[float]) -> float:
    """How alike a subject is to several walks of one person: the mean of the similarities.

    A stranger's walks seldom all resemble somebody, so the mean reaches a threshold that was found
    for single walks no more often than one of them does.
    """
    return sum(similarities) / len(similarities)

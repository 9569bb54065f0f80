"""Compare walks with a gallery before they are enrolled: whose they may be, and which it has.

The gallery's index is searched before the enrolment's transaction, because that may take a while.
In the transaction only what was enrolled since is compared, so the answer is that of the newest
revision, and the database's write lock is held for moments. Of two enrolments at once the later
one sees the walks of the earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from models.comparison.similarity import similarity
from service.foundation.errors import Invalid
from service.gallery.ranking import Candidate, GallerySearch
from service.gallery.records import AddedSequence, Embedding
from service.gallery.scenes import Scene, compared, scored
from service.gallery.store import (
    EnrolmentTransaction,
    GalleryChanged,
    GalleryStore,
    Head,
    NewSequence,
)
from service.gallery.tables import SequenceRow
from service.recognition.conflict import (
    ComparedWalk,
    ConflictingWalk,
    EnrolmentConflict,
    Resemblance,
    find_conflicts,
    nearer,
)
from service.serving.thresholds import ModelInUse, threshold_for


@dataclass(frozen=True, slots=True)
class Comparison:
    """What each walk of a request resembles in a gallery, as of a revision.

    `threshold` is what the gallery decides by; None when it has nothing to decide by. `scene` is
    the transform by which the walks were compared.
    """

    gallery_id: str
    revision: int
    threshold: float | None
    walks: tuple[ComparedWalk, ...]
    scene: Scene | None = None

    def cites(self) -> frozenset[str]:
        """Every enrolled sequence that these comparisons rest on."""
        found = (one for walk in self.walks for one in (walk.kept, walk.other))
        return frozenset(one.sequence_id for one in found if one and one.sequence_id)


@dataclass(frozen=True, slots=True)
class Admission:
    """What becomes of each walk of a request.

    Attributes:
        ids: under which each walk is in the gallery.
        added: those that are new; the others are enrolled already.
        conflicts: that were accepted, or are no reason to refuse.
    """

    ids: tuple[str, ...]
    added: tuple[NewSequence, ...]
    conflicts: tuple[ConflictingWalk, ...]


class ConflictCheck:
    """Compares one subject's new sequences with a gallery, under the model that embedded them."""

    def __init__(
        self,
        store: GalleryStore,
        model: ModelInUse,
        subject_id: str,
        sequences: Sequence[NewSequence],
    ) -> None:
        self._store = store
        self._model = model
        self._subject_id = subject_id
        self._sequences = sequences

    def compare(self, head: Head, index: GallerySearch) -> Comparison:
        """Compare the walks with the gallery as it is at its `head`."""
        walks = []
        for sequence in self._sequences:
            probe = sequence.walk.embedding
            best = index.search(head.revision, probe, 2)
            others = [item for item in best if item.subject_id != self._subject_id]
            walks.append(
                ComparedWalk(
                    name=sequence.walk.name,
                    kept=_resemblance(index.compare(head.revision, probe, self._subject_id)),
                    sent=self._nearest_sent(sequence, index.scene),
                    other=_resemblance(others[0] if others else None),
                )
            )
        try:
            threshold = threshold_for(None, head, index, self._model).value
        except Invalid:  # without a threshold there are no matches, and so no conflicts
            threshold = None
        return Comparison(head.gallery_id, head.revision, threshold, tuple(walks), index.scene)

    def admit(
        self, transaction: EnrolmentTransaction, seen: Comparison, *, accept_conflict: bool
    ) -> Admission:
        """Decide, in the transaction that is to add the sequences, which are added.

        Raises `EnrolmentConflict` unless conflicts are accepted, and `GalleryChanged` when what was
        `seen` is not there any more.
        """
        walks = self._brought_up_to(transaction.revision - 1, seen)
        own, others = self._same_frames(transaction)
        ids: list[str] = []
        added: list[NewSequence] = []
        unlike: list[ComparedWalk] = []
        conflicts: list[ConflictingWalk] = []
        for sequence, walk in zip(self._sequences, walks, strict=True):
            plain = sequence.hashes[-1]
            if plain not in own:
                own[plain] = sequence.sequence_id  # also for its twin in this request
                added.append(sequence)
                if (same := others.get(plain)) is None:
                    unlike.append(walk)
                else:
                    nearest = nearer(walk.kept, walk.sent)
                    conflicts.append(
                        ConflictingWalk(walk.name, "same_walk", self._subject_id, nearest, same)
                    )
            ids.append(own[plain])
        if seen.threshold is not None:
            conflicts += find_conflicts(self._subject_id, unlike, seen.threshold)
        grave = [conflict for conflict in conflicts if conflict.grave]
        if grave and not accept_conflict:
            raise EnrolmentConflict(grave, seen.threshold)
        return Admission(tuple(ids), tuple(added), tuple(conflicts))

    def _nearest_sent(self, sequence: NewSequence, scene: Scene | None) -> Resemblance | None:
        """How alike the other walks of the request are; a copy of the walk itself says nothing."""
        rest = [
            other.walk.embedding
            for other in self._sequences
            if other.hashes[-1] != sequence.hashes[-1]
        ]
        if not rest:
            return None
        alike = self._similarity(sequence, rest, scene)
        _, score = scored(alike, [self._subject_id] * len(rest), scene)[self._subject_id]
        return Resemblance(self._subject_id, score, None)

    def _brought_up_to(self, newest: int, seen: Comparison) -> tuple[ComparedWalk, ...]:
        walks = seen.walks
        for added in self._added(newest, seen):
            embeddings = [embedding for _, embedding in added]
            walks = tuple(
                self._updated(
                    walk,
                    [item for item, _ in added],
                    self._similarity(one, embeddings, seen.scene),
                    seen.scene,
                )
                for one, walk in zip(self._sequences, walks, strict=True)
            )
        return walks

    def _added(
        self, newest: int, seen: Comparison
    ) -> Iterator[Sequence[tuple[AddedSequence, Embedding]]]:
        """What was enrolled since, read beside the transaction: it is committed."""
        revision = seen.revision
        while revision < newest:
            changes = self._store.changes(seen.gallery_id, revision, self._model.digest)
            if not seen.cites().isdisjoint(changes.erased):
                raise GalleryChanged
            # Without an embedding it came from a process with another model, a moment ago.
            added = [(item, item.embedding) for item in changes.added if item.embedding is not None]
            if added:
                yield added
            revision = changes.revision

    def _updated(
        self,
        walk: ComparedWalk,
        added: Sequence[AddedSequence],
        alike: NDArray[np.float32],
        scene: Scene | None,
    ) -> ComparedWalk:
        """With what was added since; new walks of a subject count by themselves, or the old ones.

        The greater counts: to score both together all of them would have to be compared again.
        """
        scores = scored(alike, [item.subject_id for item in added], scene)
        for subject_id, (row, score) in scores.items():
            found = Resemblance(subject_id, score, added[row].sequence_id)
            if subject_id == self._subject_id:
                walk = replace(walk, kept=nearer(walk.kept, found))
            else:
                walk = replace(walk, other=nearer(walk.other, found))
        return walk

    def _similarity(
        self, sequence: NewSequence, others: Sequence[Embedding], scene: Scene | None
    ) -> NDArray[np.float32]:
        walks = np.stack([sequence.walk.embedding, *others])
        seen, metric = compared(walks, self._model.metric, scene)
        return similarity(seen[0], seen[1:], metric)

    def _same_frames(
        self, transaction: EnrolmentTransaction
    ) -> tuple[dict[str, str], dict[str, Resemblance]]:
        """By the plain hash of a walk: the subject's own sequence of it, and anybody else's."""
        plain = {hashed: one.hashes[-1] for one in self._sequences for hashed in one.hashes}
        rows = transaction.session.execute(
            select(SequenceRow.id, SequenceRow.subject_id, SequenceRow.content_hash)
            .where(
                SequenceRow.gallery_id == transaction.gallery_id,
                SequenceRow.content_hash.in_(plain),
            )
            .order_by(SequenceRow.id)
        )
        own: dict[str, str] = {}
        others: dict[str, Resemblance] = {}
        for row in rows:
            content = plain[row.content_hash]
            if row.subject_id == self._subject_id:
                own.setdefault(content, row.id)
            else:
                others.setdefault(content, Resemblance(row.subject_id, 1.0, row.id))
        return own, others


def _resemblance(candidate: Candidate | None) -> Resemblance | None:
    if candidate is None:
        return None
    return Resemblance(candidate.subject_id, candidate.similarity, candidate.sequence_id)

"""Protects a gallery from walks of the wrong person, and from the same walk twice.

The gallery's index is searched before the enrolment's turn to write, because that may take a while;
in the turn itself only what was enrolled since is compared, so the answer is that of the newest
revision and the database's write lock is held for moments. Of two enrolments at once the second
one, whichever that is, sees the first one's walks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.comparison.similarity import similarity
from service.conflict import (
    ConflictingWalk,
    EnrolmentConflict,
    NewWalk,
    Resemblance,
    find_conflicts,
    nearer,
)
from service.decision import threshold_for
from service.errors import Invalid
from service.gallery.followed import Candidate, FollowedGallery
from service.gallery.records import Embedding, FollowedSequence, NewSequence
from service.gallery.sealing import Sealing
from service.gallery.store import GalleryStore
from service.gallery.tables import SequenceRow
from service.model_in_use import ModelInUse


class GalleryChanged(Exception):
    """What the walks were compared with was erased meanwhile: look again."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A sequence to be enrolled, what its upload is called, and the hashes of its content.

    `content` is the plain one; `hashes` are all under which the gallery may have it.
    """

    name: str
    sequence: NewSequence
    content: str
    hashes: tuple[str, ...]

    @classmethod
    def of(cls, name: str, sequence: NewSequence, sealing: Sealing) -> Offered:
        """Hash the content: megabytes, so not on an event loop."""
        hashes = sealing.content_hashes(sequence.silhouettes)
        return cls(name, sequence, hashes[-1], hashes)


@dataclass(frozen=True, slots=True)
class Seen:
    """What each walk of a request resembles in a gallery, as of a revision.

    `threshold` is what the gallery decides by; None when it has nothing to decide by.
    """

    gallery_id: str
    revision: int
    threshold: float | None
    walks: tuple[NewWalk, ...]

    def cites(self) -> frozenset[str]:
        """Every enrolled sequence that these comparisons rest on."""
        found = (one for walk in self.walks for one in (walk.kept, walk.other))
        return frozenset(one.sequence_id for one in found if one and one.sequence_id)


@dataclass(frozen=True, slots=True)
class Admission:
    """What comes of each walk of a request.

    Attributes:
        ids: under which each walk is in the gallery.
        added: those that are new; the others are enrolled already.
        conflicts: that were accepted, or are no reason to refuse.
    """

    ids: tuple[str, ...]
    added: Collection[str]
    conflicts: tuple[ConflictingWalk, ...]


class Protection:
    """Looks at walks before they are enrolled, and decides in the enrolment's turn.

    Under one model: the one that embedded the walks.
    """

    def __init__(
        self, store: GalleryStore, index: Callable[[str], FollowedGallery], model: ModelInUse
    ) -> None:
        """`index` gives what this model made of the gallery with an id."""
        self._store = store
        self._index = index
        self._model = model

    def look(self, gallery: str, subject_id: str, offered: Sequence[Offered]) -> Seen:
        """Compare the walks with the gallery as it is now; raises `NotFound` for a missing one."""
        gallery_id, newest, point = self._store.head(gallery, self._model.digest)
        followed = self._index(gallery_id)
        walks = []
        for one in offered:
            probe = one.sequence.embedding
            best = followed.search(newest, probe, 2)
            others = [item for item in best if item.subject_id != subject_id]
            walks.append(
                NewWalk(
                    name=one.name,
                    kept=_resemblance(followed.compare(newest, probe, subject_id)),
                    sent=self._nearest_sent(subject_id, one, offered),
                    other=_resemblance(others[0] if others else None),
                )
            )
        try:
            threshold = threshold_for(None, point, followed.subjects, self._model).value
        except Invalid:  # nobody can say what a match is, so nobody is mistaken for anybody
            threshold = None
        return Seen(gallery_id, newest, threshold, tuple(walks))

    def admit(
        self,
        session: Session,
        gallery_id: str,
        revision: int,
        subject_id: str,
        offered: Sequence[Offered],
        seen: Seen,
        *,
        accept_conflict: bool,
    ) -> Admission:
        """Decide, in the transaction whose turn it is to make `revision`, what is added.

        Raises `EnrolmentConflict` unless conflicts are accepted, and `GalleryChanged` when what was
        seen is not there any more.
        """
        walks = self._brought_up_to(revision - 1, gallery_id, subject_id, offered, seen)
        own, others = _same_content(session, gallery_id, subject_id, offered)
        ids: list[str] = []
        fresh: list[tuple[NewWalk, Resemblance | None]] = []
        for one, walk in zip(offered, walks, strict=True):
            if one.content not in own:
                own[one.content] = one.sequence.sequence_id  # also for its twin in this request
                fresh.append((walk, others.get(one.content)))
            ids.append(own[one.content])
        conflicts = [
            ConflictingWalk(walk.name, "same_walk", subject_id, nearer(walk.kept, walk.sent), same)
            for walk, same in fresh
            if same is not None
        ]
        if seen.threshold is not None:
            unlike = [walk for walk, same in fresh if same is None]
            conflicts += find_conflicts(subject_id, unlike, seen.threshold)
        grave = [conflict for conflict in conflicts if conflict.grave]
        if grave and not accept_conflict:
            raise EnrolmentConflict(grave, seen.threshold)
        offered_ids = {one.sequence.sequence_id for one in offered}
        return Admission(tuple(ids), offered_ids & set(ids), tuple(conflicts))

    def _nearest_sent(
        self, subject_id: str, one: Offered, offered: Sequence[Offered]
    ) -> Resemblance | None:
        """The nearest other walk of the request; a copy of the walk itself says nothing."""
        rest = [item.sequence.embedding for item in offered if item.content != one.content]
        if not rest:
            return None
        alike = similarity(one.sequence.embedding, np.stack(rest), self._model.metric)
        return Resemblance(subject_id, float(alike.max()), None)

    def _brought_up_to(
        self,
        newest: int,
        gallery_id: str,
        subject_id: str,
        offered: Sequence[Offered],
        seen: Seen,
    ) -> tuple[NewWalk, ...]:
        if gallery_id != seen.gallery_id:  # another gallery of the same name
            raise GalleryChanged
        walks = seen.walks
        for added in self._added(newest, seen):
            embeddings = np.stack([embedding for _, embedding in added])
            walks = tuple(
                _updated(
                    walk,
                    subject_id,
                    [item for item, _ in added],
                    similarity(one.sequence.embedding, embeddings, self._model.metric).tolist(),
                )
                for one, walk in zip(offered, walks, strict=True)
            )
        return walks

    def _added(
        self, newest: int, seen: Seen
    ) -> Iterator[Sequence[tuple[FollowedSequence, Embedding]]]:
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


def _resemblance(candidate: Candidate | None) -> Resemblance | None:
    if candidate is None:
        return None
    return Resemblance(candidate.subject_id, candidate.similarity, candidate.sequence_id)


def _updated(
    walk: NewWalk, subject_id: str, added: Sequence[FollowedSequence], alike: Sequence[float]
) -> NewWalk:
    for item, value in zip(added, alike, strict=True):
        found = Resemblance(item.subject_id, value, item.sequence_id)
        if item.subject_id == subject_id:
            walk = replace(walk, kept=nearer(walk.kept, found))
        else:
            walk = replace(walk, other=nearer(walk.other, found))
    return walk


def _same_content(
    session: Session, gallery_id: str, subject_id: str, offered: Sequence[Offered]
) -> tuple[dict[str, str], dict[str, Resemblance]]:
    """By the content of a walk: the subject's own sequence of it, and anybody else's."""
    contents = {hashed: one.content for one in offered for hashed in one.hashes}
    rows = session.execute(
        select(SequenceRow.id, SequenceRow.subject_id, SequenceRow.content_hash)
        .where(
            SequenceRow.gallery_id == gallery_id,
            SequenceRow.content_hash.in_(contents),
        )
        .order_by(SequenceRow.id)
    )
    own: dict[str, str] = {}
    others: dict[str, Resemblance] = {}
    for row in rows:
        if row.subject_id == subject_id:
            own.setdefault(contents[row.content_hash], row.id)
        else:
            found = Resemblance(row.subject_id, 1.0, row.id)
            others.setdefault(contents[row.content_hash], found)
    return own, others

"""Audit a gallery: which sequences attract other people, and which are poor.

- **Nearer to another**: a sequence whose most similar one belongs to another subject, above the
  threshold. Searched for, it would be taken for that subject: it may be enrolled under the wrong
  name, or attract that subject's walks.
- **Hubs**: sequences that are the nearest impostor of unusually many other subjects. By chance a
  sequence is that for a Poisson-distributed number of subjects; one is a hub where a gallery of
  this size would have a hundredth of such a sequence.
- **Pairs**: two subjects, each of whom resembles nobody more than the other, above the threshold:
  perhaps one person under two names.
- **Poor**: sequences whose quality was low, or had issues, when they were enrolled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.card import Metric
from models.comparison.nearest import Nearest, nearest
from service.database import now
from service.decision import ThresholdSource, choose_threshold
from service.errors import Invalid
from service.gallery.sealing import sealing_of
from service.gallery.store import missing_gallery, sequences_under
from service.gallery.tables import GalleryRow, SequenceRow
from service.model_registry import read_card
from service.operating_point import OperatingPoint

MOST_LISTED: Final = 50
_POOR_SCORE: Final = 0.5
_CHANCE: Final = 0.01
_PIECE: Final = 512  # sequences that are read at once


class CannotAudit(ValueError):
    """The gallery cannot be audited as it is; the text says what to do."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class AuditModel(_Record):
    """What an audit needs of a checkpoint's card."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str
    metric: Metric
    threshold: float | None = None

    @classmethod
    def read(cls, checkpoint: Path) -> AuditModel:
        """From a checkpoint's folder, without loading it; raises `CannotAudit`."""
        try:
            return cls.model_validate(read_card(checkpoint))
        except ValidationError as error:
            raise CannotAudit(f"the card of {checkpoint.name} is not one") from error


class Member(_Record):
    """One sequence, and whose it is."""

    sequence_id: str
    subject_id: str


class NearerToAnother(Member):
    """A sequence whose most similar one is another subject's."""

    own_similarity: float | None
    other: Member
    similarity: float


class Hub(Member):
    """A sequence that is the nearest impostor of so many other subjects."""

    attracts: int
    attracts_above_threshold: int


class Pair(_Record):
    """Two subjects who may be one person, by the sequences that are most alike."""

    members: tuple[Member, Member]
    similarity: float


class Poor(Member):
    """A sequence of poor quality."""

    score: float
    issues: tuple[str, ...]


class Totals(_Record):
    """How many were found, listed or not."""

    nearer_to_another: int
    hubs: int
    pairs: int
    poor: int


class Audit(_Record):
    """What was found in a gallery; each list has the worst first, at most `MOST_LISTED` of them."""

    gallery: str
    gallery_subjects: int
    gallery_sequences: int
    threshold: float
    threshold_source: ThresholdSource
    digest: str
    audited_at: datetime
    totals: Totals
    nearer_to_another: tuple[NearerToAnother, ...]
    hubs: tuple[Hub, ...]
    pairs: tuple[Pair, ...]
    poor: tuple[Poor, ...]


class Audited(_Record):
    """An audit, and of which gallery: its name may be another's by now."""

    gallery_id: str
    audit: Audit


Progress = Callable[[int, int], None]
"""Told how many sequences are done, of how many."""


def audit(
    engine: Engine,
    gallery: str,
    model: AuditModel,
    progress: Progress = lambda _done, _total: None,
) -> Audited:
    """Compare everybody in a gallery with everybody else, as it is now.

    Raises `NotFound` for a missing gallery, and `CannotAudit` when nobody is enrolled, not
    everybody is embedded with this model yet, or there is no threshold to judge by.
    """
    enrolled = _read(engine, gallery, model)
    total = len(enrolled.members)
    names, subjects = np.unique([item.subject_id for item in enrolled.members], return_inverse=True)
    try:
        threshold = choose_threshold(
            None, enrolled.operating_point, len(names), model.digest, model.threshold
        )
    except Invalid as error:
        raise CannotAudit(
            "neither the gallery nor the active model has a threshold; calibrate the gallery first"
        ) from error
    own, others = nearest(
        enrolled.embeddings, subjects, model.metric, lambda done: progress(done, total)
    )
    found = _Found(enrolled.members, subjects, own, others, threshold.value)
    astray, hubs, pairs = found.nearer_to_another(), found.hubs(), found.pairs()
    return Audited(
        gallery_id=enrolled.gallery_id,
        audit=Audit(
            gallery=gallery,
            gallery_subjects=len(names),
            gallery_sequences=total,
            threshold=threshold.value,
            threshold_source=threshold.source,
            digest=model.digest,
            audited_at=now(),
            totals=Totals(
                nearer_to_another=len(astray),
                hubs=len(hubs),
                pairs=len(pairs),
                poor=len(enrolled.poor),
            ),
            nearer_to_another=tuple(astray[:MOST_LISTED]),
            hubs=tuple(hubs[:MOST_LISTED]),
            pairs=tuple(pairs[:MOST_LISTED]),
            poor=tuple(enrolled.poor[:MOST_LISTED]),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Enrolled:
    """A gallery under one checkpoint: embeddings [n, p, c] of n members."""

    gallery_id: str
    operating_point: OperatingPoint | None
    members: list[Member]
    embeddings: NDArray[np.float32]
    poor: list[Poor]


@dataclass(frozen=True, slots=True)
class _Found:
    """Everybody's nearest, and what that means."""

    members: list[Member]
    subjects: NDArray[np.int64]
    own: Nearest
    others: Nearest
    threshold: float

    def nearer_to_another(self) -> list[NearerToAnother]:
        """The most similar first."""
        astray = (self.others.similarity >= self.threshold) & (
            self.others.similarity > self.own.similarity
        )
        rows = np.flatnonzero(astray)
        return [
            NearerToAnother(
                sequence_id=self.members[row].sequence_id,
                subject_id=self.members[row].subject_id,
                own_similarity=_number(self.own.similarity[row]),
                other=self.members[self.others.index[row]],
                similarity=float(self.others.similarity[row]),
            )
            for row in rows[np.argsort(-self.others.similarity[rows], kind="stable")].tolist()
        ]

    def hubs(self) -> list[Hub]:
        """The one that attracts most subjects first."""
        attracts = self._attracted(-math.inf)
        above = self._attracted(self.threshold)
        unusual = unusual_count(float(attracts.mean()), len(attracts))
        rows = np.flatnonzero(attracts >= unusual)
        return [
            Hub(
                sequence_id=self.members[row].sequence_id,
                subject_id=self.members[row].subject_id,
                attracts=int(attracts[row]),
                attracts_above_threshold=int(above[row]),
            )
            for row in rows[np.lexsort((rows, -above[rows], -attracts[rows]))].tolist()
        ]

    def pairs(self) -> list[Pair]:
        """The most similar first."""
        order = np.argsort(-self.others.similarity, kind="stable")
        _, first = np.unique(self.subjects[order], return_index=True)
        best = order[first]  # of each subject the sequence that is most like somebody else's
        pairs = []
        for subject, row in enumerate(best.tolist()):
            match = int(self.others.index[row])
            if self.others.similarity[row] < self.threshold:
                continue
            other = int(self.subjects[match])
            back = int(self.others.index[best[other]])
            if subject < other and self.subjects[back] == subject:
                members = (self.members[row], self.members[match])
                similarity = float(self.others.similarity[row])
                pairs.append(Pair(members=members, similarity=similarity))
        return sorted(pairs, key=lambda pair: -pair.similarity)

    def _attracted(self, threshold: float) -> NDArray[np.int64]:
        """How many other subjects have each sequence as the nearest impostor of one of theirs."""
        near = (self.others.similarity >= threshold) & (self.others.index >= 0)
        met = np.unique(np.stack([self.others.index[near], self.subjects[near]]), axis=1)
        return np.bincount(met[0], minlength=len(self.members))


def unusual_count(mean: float, sequences: int) -> int:
    """From which count on Poisson-distributed counts of this mean would be too few to expect one.

    The least k with `sequences * P(count >= k) < 0.01`, and 3 at least.
    """
    term = math.exp(-mean)
    tail, count = 1.0, 0
    while count < 3 or sequences * tail >= _CHANCE:
        tail -= term
        count += 1
        term *= mean / count
        if tail <= 0:  # beyond what doubles tell from nothing
            return max(count, 3)
    return count


def _read(engine: Engine, gallery: str, model: AuditModel) -> _Enrolled:
    """One state of the gallery: what is read in one statement has no half of an enrolment."""
    members: list[Member] = []
    poor: list[Poor] = []
    vectors = bytearray()  # grows in place: the embeddings are in memory once
    shape, missing = (1, 1), 0
    sealing = sealing_of(engine)
    with Session(engine) as session:
        row = session.execute(
            select(GalleryRow.id, GalleryRow.operating_point).where(GalleryRow.name == gallery)
        ).one_or_none()
        if row is None:
            raise missing_gallery(gallery)
        gallery_id, point = row
        for item in session.execute(
            sequences_under(model.digest, SequenceRow.quality)
            .where(SequenceRow.gallery_id == gallery_id)
            .order_by(SequenceRow.id),
            execution_options={"yield_per": _PIECE},
        ):
            member = Member(sequence_id=item.id, subject_id=item.subject_id)
            members.append(member)
            if item.vector is None:
                missing += 1
                continue
            embedding = sealing.embedding(
                item.id,
                model.digest,
                item.vector,
                item.key_id,
                parts=item.parts,
                checksum=item.checksum,
            )
            vectors += embedding.astype("<f4").tobytes()
            shape = (item.parts, item.channels)
            if is_poor(item.quality):
                score, issues = item.quality["score"], tuple(item.quality["issues"])
                poor.append(Poor(**member.model_dump(), score=score, issues=issues))
    if not members:
        raise CannotAudit("nobody is enrolled, so there is nothing to audit")
    if missing:
        raise CannotAudit(
            f"{missing} of {len(members)} sequences are not embedded with the active model yet; "
            "audit when the service is ready"
        )
    return _Enrolled(
        gallery_id=gallery_id,
        operating_point=OperatingPoint.of(point),
        members=members,
        embeddings=np.frombuffer(vectors, "<f4").reshape(len(members), *shape),
        poor=sorted(poor, key=lambda one: one.score),
    )


def is_poor(quality: dict[str, Any]) -> bool:
    """Whether a sequence's quality, as it is kept, is worth a look."""
    return bool(quality["issues"]) or quality["score"] < _POOR_SCORE


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

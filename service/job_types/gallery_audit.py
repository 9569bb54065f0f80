"""Audits: `gaitid audit-gallery` finds sequences that attract other people, or are poor.

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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.card import Card
from models.comparison.nearest import Nearest, nearest, nearest_by_all
from models.comparison.similarity import index_vectors
from service.foundation.errors import Invalid
from service.foundation.settings import Settings
from service.gallery.reading import read_gallery
from service.gallery.records import Progress
from service.gallery.tables import GalleryRow, SequenceRow
from service.job_types.commands import measuring_step
from service.job_types.requests import AuditRequest
from service.jobs.findings import named_in, note_findings, without
from service.jobs.job import Job, JsonObject
from service.jobs.job_type import JobRefused, Outcome, Step
from service.jobs.scratch import scratch
from service.serving.thresholds import ThresholdSource, choose_threshold
from service.storage.database import now

MOST_LISTED: Final = 50
_POOR_SCORE: Final = 0.5
_CHANCE: Final = 0.01


class CannotAudit(ValueError):
    """The gallery cannot be audited as it is; the text says what to do."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


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


@dataclass(frozen=True, slots=True)
class AuditJob:
    """Lists the findings in a gallery, for a person to check."""

    settings: Settings
    engine: Engine

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Compare every sequence with every other, in one command."""
        request = AuditRequest.model_validate(job.request)
        step = measuring_step(
            self.settings, self.engine, "audit", request.gallery, _found(folder), "audit-gallery",
        )  # fmt: skip
        return (step,)

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Keep what was found, without what was erased meanwhile."""
        audited = Audited.model_validate_json(_found(folder).read_bytes())
        result = audited.audit.model_dump(mode="json")
        gallery = AuditRequest.model_validate(job.request).gallery

        def settle(session: Session) -> None:
            if not _keep_enrolled(session, audited.gallery_id, result):
                raise JobRefused("the gallery was erased while it was audited")
            note_findings(session, gallery, job.id)

        return Outcome(result, in_transaction=settle)


def _keep_enrolled(session: Session, gallery_id: str, result: JsonObject) -> bool:
    """Remove from a new audit, in place, what was erased or changed hands since.

    Returns False if the gallery was erased.

    For the transaction that ends the job: an erasure is committed before it, or finds the audit.
    """
    gallery = select(GalleryRow.id).where(GalleryRow.id == gallery_id).with_for_update()
    if session.scalar(gallery) is None:
        return False
    named = named_in(result)
    query = select(SequenceRow.id, SequenceRow.subject_id)
    rows = session.execute(query.where(SequenceRow.id.in_([one for one, _ in named])))
    there = {(row.id, row.subject_id) for row in rows}
    result.update(without(result, {one for one, _ in named - there}))
    return True


def audit(
    engine: Engine,
    gallery: str,
    model: Card,
    progress: Progress = lambda _done, _total: None,
) -> Audited:
    """Compare every sequence of a gallery with every other, as it is now.

    Raises `NotFound` for a missing gallery, and `CannotAudit` when it is empty, not all of it is
    embedded with this model yet, or neither of them has a threshold.
    """
    whole = read_gallery(engine, gallery, model.digest)
    enrolled = whole.sequences
    total = enrolled.total
    if not total:
        raise CannotAudit("nobody is enrolled, so there is nothing to audit")
    if enrolled.missing:
        raise CannotAudit(
            f"{enrolled.missing} of {total} sequences are not embedded with the active model yet; "
            "audit when the service is ready"
        )
    names, subjects = enrolled.subjects()
    try:
        threshold = choose_threshold(
            None, whole.operating_point, len(names), model.digest, model.threshold,
            None if whole.scene is None else whole.scene.version,
        )  # fmt: skip
    except Invalid as error:
        raise CannotAudit(
            "neither the gallery nor the active model has a threshold; calibrate the gallery first"
        ) from error

    def tell(done: int) -> None:
        progress(done, total)

    if whole.scene is None:
        own, others = nearest(enrolled.embeddings, subjects, model.metric, tell)
    else:  # as it is searched
        vectors = index_vectors(whole.scene.embeddings(enrolled.embeddings))
        own, others = nearest_by_all(vectors, subjects, tell)
    members = [
        Member(sequence_id=sequence_id, subject_id=subject_id)
        for sequence_id, subject_id in zip(enrolled.sequence_ids, enrolled.subject_ids, strict=True)
    ]
    poor = sorted(
        (
            Poor(**dict(member), score=quality["score"], issues=tuple(quality["issues"]))
            for member, quality in zip(members, enrolled.quality, strict=True)
            if is_poor(quality)
        ),
        key=lambda one: one.score,
    )
    walks = _Compared(members, subjects, own, others, threshold.value)
    found: dict[str, Sequence[BaseModel]] = {
        "nearer_to_another": walks.nearer_to_another(),
        "hubs": walks.hubs(),
        "pairs": walks.pairs(),
        "poor": poor,
    }
    audit = Audit(
        gallery=gallery,
        gallery_subjects=len(names),
        gallery_sequences=total,
        threshold=threshold.value,
        threshold_source=threshold.source,
        digest=model.digest,
        audited_at=now(),
        totals=Totals(**{name: len(entries) for name, entries in found.items()}),
        **{name: entries[:MOST_LISTED] for name, entries in found.items()},
    )
    return Audited(gallery_id=whole.gallery_id, audit=audit)


@dataclass(frozen=True, slots=True)
class _Compared:
    """The nearest sequences of each of n members, of the same and of other subjects."""

    members: list[Member]
    subjects: NDArray[np.int64]  # [n]
    own: Nearest
    others: Nearest
    threshold: float

    def nearer_to_another(self) -> list[NearerToAnother]:
        """The most similar first."""
        similarity = self.others.similarity
        rows = np.flatnonzero((similarity >= self.threshold) & (similarity > self.own.similarity))
        return [
            NearerToAnother(
                **self.members[row].model_dump(),
                own_similarity=_number(self.own.similarity[row]),
                other=self.members[self.others.index[row]],
                similarity=float(similarity[row]),
            )
            for row in rows[np.argsort(-similarity[rows], kind="stable")].tolist()
        ]

    def hubs(self) -> list[Hub]:
        """The one that attracts most subjects first."""
        attracts = self._attracted(-math.inf)
        above = self._attracted(self.threshold)
        rows = np.flatnonzero(attracts >= unusual_count(float(attracts.mean()), len(attracts)))
        return [
            Hub(
                **self.members[row].model_dump(),
                attracts=int(attracts[row]),
                attracts_above_threshold=int(above[row]),
            )
            for row in rows[np.lexsort((rows, -above[rows], -attracts[rows]))].tolist()
        ]

    def pairs(self) -> list[Pair]:
        """The most similar first."""
        similarity, index = self.others.similarity, self.others.index
        order = np.argsort(-similarity, kind="stable")
        _, first = np.unique(self.subjects[order], return_index=True)
        best = order[first]  # of each subject the sequence that is most like somebody else's
        pairs = []
        for subject, row in enumerate(best.tolist()):
            if similarity[row] < self.threshold:
                continue
            match = int(index[row])
            other = int(self.subjects[match])
            if subject < other and self.subjects[int(index[best[other]])] == subject:
                members = (self.members[row], self.members[match])
                pairs.append(Pair(members=members, similarity=float(similarity[row])))
        return sorted(pairs, key=lambda pair: -pair.similarity)

    def _attracted(self, threshold: float) -> NDArray[np.int64]:
        """How many other subjects have each sequence as the nearest impostor of one of theirs."""
        near = (self.others.similarity >= threshold) & (self.others.index >= 0)
        met = np.unique(np.stack([self.others.index[near], self.subjects[near]]), axis=1)
        return np.bincount(met[0], minlength=len(self.members))


def unusual_count(mean: float, sequences: int) -> int:
    """The least k >= 3 with `sequences * P(count >= k) < 0.01` for a Poisson count."""
    term = math.exp(-mean)
    tail, count = 1.0, 0
    while count < 3 or sequences * tail >= _CHANCE:
        tail -= term
        count += 1
        term *= mean / count
        if tail <= 0:  # beyond what doubles tell from nothing
            return max(count, 3)
    return count


def is_poor(quality: dict[str, Any]) -> bool:
    """Whether a sequence's quality, as it is kept, is worth a look."""
    return bool(quality["issues"]) or quality["score"] < _POOR_SCORE


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _found(folder: Path) -> Path:
    return scratch(folder).absolute() / "audit.json"

"""Enrol sequences of one subject: every one of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from models.silhouettes.types import Quality
from service.gallery.coverage import Coverage, coverage, labels_in_use
from service.gallery.found_walks import FoundWalk, take
from service.gallery.records import Metadata, Walk
from service.gallery.store import GalleryChanged, GalleryStore, NewSequence
from service.recognition.conflict import ConflictingWalk
from service.recognition.conflict_check import Admission, ConflictCheck
from service.recognition.found_walks import embed_found
from service.recognition.intake import Intake, Upload
from service.serving.active_models import ActiveModels
from service.serving.adaptation import queue_if_due
from service.serving.model_pool import LoadedModel
from service.serving.thresholds import ModelInUse, queue_if_stale
from service.storage.writers import Writers


@dataclass(frozen=True, slots=True)
class EnrolledSequence:
    """One sequence that is in the gallery now; or was, before it was sent again."""

    sequence_id: str
    frames: int
    quality: Quality
    already_enrolled: bool


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What an enrolment added, and how the subject is covered now."""

    gallery: str
    subject_id: str
    sequences: tuple[EnrolledSequence, ...]
    conflicts: tuple[ConflictingWalk, ...]
    coverage: Coverage
    model: ModelInUse


InTransaction = Callable[[Session, Enrolled], None]
"""Work for the enrolment's own transaction; what it raises rolls everything back."""


class Enrolment:
    """The use case behind POST /enroll."""

    def __init__(
        self, store: GalleryStore, writers: Writers, intake: Intake, models: ActiveModels
    ) -> None:
        self._store = store
        self._writers = writers
        self._intake = intake
        self._models = models

    async def enrol(
        self,
        gallery: str,
        subject_id: str,
        sent: Sequence[Upload] | FoundWalk,
        metadata: Metadata,
        in_transaction: InTransaction,
        *,
        accept_conflict: bool = False,
    ) -> Enrolled:
        """Prepare and embed the uploads, then add them in one transaction.

        A walk that a job found instead is enrolled once, and is listed only from then on. A walk
        that the subject has already is not added again. A gallery that outgrows its
        calibration by it is calibrated again, by a job.

        Raises `NotFound` for a missing gallery, `EnrolmentConflict` for walks that may be another
        subject's unless that is accepted, and whatever `ActiveModels.using`, `Intake.embed` and
        `in_transaction` raise; the gallery is unchanged then.
        """
        # One model throughout, whatever becomes active meanwhile: what the walks are compared with
        # is what the same model made of the gallery.
        async with self._models.using(gallery) as loaded:
            if isinstance(sent, FoundWalk):
                walks = await embed_found(sent, loaded.batcher)
            else:
                walks = await self._intake.embed(sent, loaded.batcher)
            return await self._writers.run(
                self._add,
                gallery,
                subject_id,
                walks,
                metadata,
                loaded,
                in_transaction,
                accept_conflict=accept_conflict,
                taken=sent.walk_id if isinstance(sent, FoundWalk) else None,
            )

    def _add(
        self,
        gallery: str,
        subject_id: str,
        walks: Sequence[Walk],
        metadata: Metadata,
        loaded: LoadedModel,
        in_transaction: InTransaction,
        *,
        accept_conflict: bool,
        taken: str | None,
    ) -> Enrolled:
        model, store = loaded.model, self._store
        sequences = store.seal(walks, metadata, model.digest)
        check = ConflictCheck(store, model, subject_id, sequences)
        while True:
            head = store.head(gallery, model.digest)
            compared = check.compare(head, self._models.index(head.gallery_id, loaded))
            with Session(store.engine) as session:
                in_use = labels_in_use(session, head.gallery_id, subject_id)
            try:
                with store.enrolling(head.gallery_id, subject_id) as transaction:
                    admission = check.admit(transaction, compared, accept_conflict=accept_conflict)
                    transaction.add(admission.added)
                    if taken is not None:
                        take(transaction.session, taken)
                    queue_if_stale(transaction.session, gallery, model.digest)
                    queue_if_due(transaction.session, gallery, model.digest)
                    enrolled = Enrolled(
                        gallery=gallery,
                        subject_id=subject_id,
                        sequences=_enrolled(sequences, admission),
                        conflicts=admission.conflicts,
                        coverage=coverage(transaction.session, head.gallery_id, subject_id, in_use),
                        model=model,
                    )
                    in_transaction(transaction.session, enrolled)
                return enrolled
            except GalleryChanged:  # an erasure took what the walks had just been compared with
                continue


def _enrolled(
    sequences: Sequence[NewSequence], admission: Admission
) -> tuple[EnrolledSequence, ...]:
    added = {sequence.sequence_id for sequence in admission.added}
    return tuple(
        EnrolledSequence(
            sequence_id=sequence_id,
            frames=len(sequence.walk.silhouettes),
            quality=sequence.walk.quality,
            already_enrolled=sequence.sequence_id not in added,
        )
        for sequence, sequence_id in zip(sequences, admission.ids, strict=True)
    )

"""Enrol sequences of one subject: every one of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.gallery.coverage import Coverage, LabelsInUse, coverage, labels_in_use
from service.gallery.records import Metadata, NewSequence, SequenceQuality
from service.gallery.sealing import sealing_of
from service.gallery.store import GalleryStore
from service.recognition.conflict import ConflictingWalk
from service.recognition.intake import Intake, Walk, shown
from service.recognition.protection import Admission, GalleryChanged, Offered, Protection, Seen
from service.serving.active_models import ActiveModels
from service.serving.model_pool import LoadedModel
from service.serving.thresholds import ModelInUse, queue_if_stale
from service.storage.database import new_id
from service.storage.writers import Writers


@dataclass(frozen=True, slots=True)
class EnrolledSequence:
    """One sequence that is in the gallery now; or was, before it was sent again."""

    sequence_id: str
    frames: int
    quality: SequenceQuality
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


Also = Callable[[Session, Enrolled], None]


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
        walks: Sequence[Walk],
        metadata: Metadata,
        also: Also,
        *,
        accept_conflict: bool = False,
    ) -> Enrolled:
        """Prepare and embed the walks, then add them in one transaction, in which `also` runs.

        A walk that the subject has already is not added again. A gallery that outgrows its
        calibration by it is calibrated again, by a job.

        Raises `NotFound` for a missing gallery, `EnrolmentConflict` for walks that may be another
        subject's unless that is accepted, and whatever `ActiveModels.using` and `Intake.embed`
        raise; the gallery is unchanged then.
        """
        # One model throughout, whatever becomes active meanwhile: what the walks are compared with
        # is what the same model made of the gallery.
        async with self._models.using(gallery) as loaded:
            embedded = await self._intake.embed(walks, loaded.batcher)
            named = [
                (
                    shown(walk.name),
                    NewSequence(new_id(), item.silhouettes, item.quality, metadata, item.embedding),
                )
                for walk, item in zip(walks, embedded, strict=True)
            ]
            return await self._writers.run(
                self._add,
                gallery,
                subject_id,
                named,
                also,
                loaded,
                accept_conflict=accept_conflict,
            )

    def _add(
        self,
        gallery: str,
        subject_id: str,
        named: Sequence[tuple[str, NewSequence]],
        also: Also,
        loaded: LoadedModel,
        *,
        accept_conflict: bool,
    ) -> Enrolled:
        model = loaded.model
        sealing = sealing_of(self._store.engine)
        offered = [Offered.of(name, sequence, sealing) for name, sequence in named]
        protection = Protection(
            self._store, lambda gallery_id: self._models.index(gallery_id, loaded), model
        )
        while True:
            seen = protection.look(gallery, subject_id, offered)
            with Session(self._store.engine) as session:
                in_use = labels_in_use(session, seen.gallery_id, subject_id)
            attempt = _Attempt(
                protection, model, gallery, subject_id, offered, seen, in_use, accept_conflict
            )
            try:
                return attempt.carry_out(self._store, also)
            except GalleryChanged:  # an erasure took what the walks had just been compared with
                continue


@dataclass(slots=True)
class _Attempt:
    """One transaction that adds the walks, after they were compared with the gallery."""

    protection: Protection
    model: ModelInUse
    gallery: str
    subject_id: str
    offered: Sequence[Offered]
    seen: Seen
    in_use: LabelsInUse
    accept_conflict: bool

    def carry_out(self, store: GalleryStore, also: Also) -> Enrolled:
        """Raises `GalleryChanged`, and what `Protection.admit` and `also` raise."""
        decided: list[tuple[str, Admission]] = []
        answers: list[Enrolled] = []

        def admit(session: Session, gallery_id: str, revision: int) -> Collection[str]:
            admission = self.protection.admit(
                session,
                gallery_id,
                revision,
                self.subject_id,
                self.offered,
                self.seen,
                accept_conflict=self.accept_conflict,
            )
            decided.append((gallery_id, admission))
            return admission.added

        def finish(session: Session) -> None:
            queue_if_stale(session, self.gallery, self.model.digest)
            ((gallery_id, admission),) = decided
            covered = coverage(session, gallery_id, self.subject_id, self.in_use)
            answers.append(self._answer(admission, covered))
            also(session, answers[0])

        store.enrol(
            self.gallery,
            self.subject_id,
            [one.sequence for one in self.offered],
            self.model.digest,
            finish,
            admit,
        )
        return answers[0]

    def _answer(self, admission: Admission, covered: Coverage) -> Enrolled:
        added = set(admission.added)
        sequences = []
        for one, sequence_id in zip(self.offered, admission.ids, strict=True):
            sequences.append(
                EnrolledSequence(
                    sequence_id=sequence_id,
                    frames=len(one.sequence.silhouettes),
                    quality=one.sequence.quality,
                    already_enrolled=one.sequence.sequence_id not in added,
                )
            )
        return Enrolled(
            gallery=self.gallery,
            subject_id=self.subject_id,
            sequences=tuple(sequences),
            conflicts=admission.conflicts,
            coverage=covered,
            model=self.model,
        )

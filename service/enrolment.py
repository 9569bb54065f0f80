"""Enrol sequences of one subject: every one of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.active_models import ActiveModels
from service.calibration import queue_if_stale
from service.database import new_id
from service.gallery.records import Metadata, NewSequence, SequenceQuality
from service.gallery.store import GalleryStore
from service.intake import Intake, Walk
from service.model_in_use import ModelInUse
from service.writers import Writers


@dataclass(frozen=True, slots=True)
class EnrolledSequence:
    """One sequence that is in the gallery now."""

    sequence_id: str
    frames: int
    quality: SequenceQuality


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What an enrolment added."""

    gallery: str
    subject_id: str
    sequences: tuple[EnrolledSequence, ...]
    model: ModelInUse


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
        also: Callable[[Session, Enrolled], None],
    ) -> Enrolled:
        """Prepare and embed the walks, then add them in one transaction, in which `also` runs.

        A gallery that outgrows its calibration by it is calibrated again, by a job.

        Raises `NotFound` for a missing gallery, and whatever `ActiveModels.using` and
        `Intake.embed` raise; the gallery is unchanged then.
        """
        async with self._models.using(gallery) as loaded:
            model = loaded.model
            embedded = await self._intake.embed(walks, loaded.batcher)
        new = [
            NewSequence(new_id(), walk.silhouettes, walk.quality, metadata, walk.embedding)
            for walk in embedded
        ]
        enrolled = Enrolled(
            gallery=gallery,
            subject_id=subject_id,
            sequences=tuple(
                EnrolledSequence(item.sequence_id, len(item.silhouettes), item.quality)
                for item in new
            ),
            model=model,
        )

        def finish(session: Session) -> None:
            queue_if_stale(session, gallery, model.digest)
            also(session, enrolled)

        await self._writers.run(self._store.enrol, gallery, subject_id, new, model.digest, finish)
        return enrolled

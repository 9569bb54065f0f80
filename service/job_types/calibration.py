"""Calibration: `gaitid calibrate-gallery` finds a threshold, the job keeps it with the gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.calibration import (
    CONFIDENCE,
    CannotCalibrate,
    calibrate,
    calibration_curve,
    stranger_similarities,
)
from service.foundation.settings import Settings
from service.gallery.operating_point import CurvePoint, OperatingPoint
from service.gallery.records import Progress
from service.gallery.sealing import sealing_of
from service.gallery.store import missing_gallery, sequences_under
from service.gallery.tables import GalleryRow, SequenceRow
from service.job_types.commands import measuring_step
from service.job_types.requests import CalibrateRequest
from service.jobs.job import Job
from service.jobs.job_type import JobRefused, Outcome, Step
from service.jobs.scratch import scratch
from service.serving import thresholds
from service.serving.registry import Card
from service.storage.database import now


class NotEmbedded(CannotCalibrate):
    """The model has not embedded all of the gallery."""


class Measured(BaseModel):
    """What was found, and in which gallery: its name may be another's by now."""

    model_config = ConfigDict(frozen=True)

    gallery_id: str
    operating_point: OperatingPoint


@dataclass(frozen=True, slots=True)
class _Enrolled:
    """Everything that a checkpoint made of a gallery: embeddings [n, p, c], whose each is [n]."""

    embeddings: NDArray[np.float32]
    subjects: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CalibrateJob:
    """Finds a gallery's threshold; the gallery decides by it once the job has succeeded."""

    settings: Settings
    engine: Engine

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Compare every sequence with every other, in one command."""
        request = CalibrateRequest.model_validate(job.request)
        step = measuring_step(
            self.settings, self.engine, "calibration", request.gallery, _found(folder),
            "calibrate-gallery", "--target-fpir", repr(request.target_fpir),
        )  # fmt: skip
        return (step,)

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Keep the threshold with the gallery that was measured, if that is still there."""
        measured = Measured.model_validate_json(_found(folder).read_bytes())

        def keep(session: Session) -> None:
            if not thresholds.keep(session, measured.gallery_id, measured.operating_point):
                raise JobRefused(
                    "the gallery was erased or given another model while it was calibrated"
                )

        gallery = CalibrateRequest.model_validate(job.request).gallery
        result = {"gallery": gallery, **measured.operating_point.result()}
        return Outcome(result, in_transaction=keep)


def measure(
    engine: Engine,
    gallery: str,
    model: Card,
    target_fpir: float,
    progress: Progress = lambda _done, _total: None,
) -> Measured:
    """Find the threshold for a gallery as it is now.

    Raises `NotFound` for a missing gallery, `CannotCalibrate` when it is too small for the rate,
    and `NotEmbedded` when it is not yet embedded with this model.
    """
    gallery_id, enrolled = _read(engine, gallery, model.digest)
    total = len(enrolled.subjects)
    similarities = stranger_similarities(
        enrolled.embeddings, enrolled.subjects, model.metric, lambda done: progress(done, total)
    )
    found = calibrate(similarities, enrolled.subjects, target_fpir, model.thresholds)
    curve = calibration_curve(similarities, enrolled.subjects, model.thresholds)
    curve[target_fpir] = found
    point = OperatingPoint(
        threshold=found.threshold,
        interval=found.interval,
        confidence=CONFIDENCE,
        method=found.method,
        target_fpir=target_fpir,
        gallery_subjects=len(np.unique(enrolled.subjects)),
        gallery_sequences=total,
        calibrated_at=now(),
        digest=model.digest,
        curve=tuple(CurvePoint.of(*item) for item in sorted(curve.items(), reverse=True)),
    )
    return Measured(gallery_id=gallery_id, operating_point=point)


def _read(engine: Engine, gallery: str, digest: str) -> tuple[str, _Enrolled]:
    """One state of the gallery: what is read in one statement has no half of an enrolment."""
    with Session(engine) as session:
        gallery_id = session.scalar(select(GalleryRow.id).where(GalleryRow.name == gallery))
        if gallery_id is None:
            raise missing_gallery(gallery)
        rows = session.execute(
            sequences_under(digest)
            .where(SequenceRow.gallery_id == gallery_id)
            .order_by(SequenceRow.id)
        ).all()
    missing = sum(row.vector is None for row in rows)
    if missing:
        raise NotEmbedded(
            f"{missing} of {len(rows)} sequences are not embedded with the active model yet; "
            "calibrate when the service is ready"
        )
    shape = (rows[0].parts, rows[0].channels) if rows else (1, 1)
    sealing = sealing_of(engine)
    embeddings = np.empty((len(rows), *shape), np.float32)
    for number, row in enumerate(rows):
        embeddings[number] = sealing.embedding(
            row.id, digest, row.vector, row.key_id, parts=row.parts, checksum=row.checksum
        )
    _, subjects = np.unique(
        np.asarray([row.subject_id for row in rows], np.str_), return_inverse=True
    )
    return gallery_id, _Enrolled(embeddings, subjects)


def _found(folder: Path) -> Path:
    return scratch(folder).absolute() / "calibration.json"

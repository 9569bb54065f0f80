"""Calibrate a gallery: measure it, keep what was found, and measure it again when that is stale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Engine, func, or_, select, update
from sqlalchemy.orm import Session

from models.card import Metric
from models.thresholds.calibration import (
    CONFIDENCE,
    CannotCalibrate,
    KnownThreshold,
    calibrate,
    calibration_curve,
    stranger_similarities,
)
from service.database import now, writing
from service.gallery.sealing import sealing_of
from service.gallery.store import missing_gallery, sequences_under
from service.gallery.tables import GalleryRow, SequenceRow, SubjectRow
from service.jobs.queue import queue_unless_claimed
from service.model_registry import read_card
from service.operating_point import CurvePoint, OperatingPoint, Rerun


class NotEmbedded(CannotCalibrate):
    """The model has not embedded all of the gallery."""


class CalibrationModel(BaseModel):
    """What calibrating needs of a checkpoint's card."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str
    metric: Metric
    threshold: float | None = None
    thresholds: tuple[KnownThreshold, ...] = ()

    @classmethod
    def read(cls, checkpoint: Path) -> CalibrationModel:
        """From a checkpoint's folder, without loading it; raises `CannotCalibrate`."""
        try:
            return cls.model_validate(read_card(checkpoint))
        except ValidationError as error:
            raise CannotCalibrate(f"the card of {checkpoint.name} is not one") from error


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


Progress = Callable[[int, int], None]
"""Told how many sequences are done, of how many."""


def measure(
    engine: Engine,
    gallery: str,
    model: CalibrationModel,
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


def keep(session: Session, measured: Measured) -> bool:
    """Make it what the gallery decides by.

    False when that gallery was erased meanwhile, or given a model whose similarities these are not.
    """
    digest = measured.operating_point.digest
    changed = session.execute(
        update(GalleryRow)
        .where(
            GalleryRow.id == measured.gallery_id,
            or_(GalleryRow.active_digest.is_(None), GalleryRow.active_digest == digest),
        )
        .values(operating_point=measured.operating_point.kept())
        .returning(GalleryRow.id)
    )
    return changed.one_or_none() is not None


KIND: Final = "calibrate"


def claim(gallery: str) -> str:
    """What only one unfinished calibration of a gallery may hold."""
    return f"calibrate:{gallery}"


def queue_if_stale(session: Session, gallery: str, digest: str) -> None:
    """Queue a calibration when the gallery's is stale; at most one for each time it became so.

    `digest` is of the deployment's own model, for a gallery that has not been given another one.

    For a transaction that holds the write lock, such as that of an enrolment. A re-run that failed
    is not tried again before the gallery has grown by another fifth or the model is another.
    """
    row = session.execute(
        select(GalleryRow.id, GalleryRow.operating_point, GalleryRow.active_digest).where(
            GalleryRow.name == gallery
        )
    ).one_or_none()
    point = None if row is None else OperatingPoint.of(row.operating_point)
    if row is None or point is None:
        return
    # A process may go on with the old model for a moment after the gallery got another one.
    digest = row.active_digest or digest
    subjects = session.scalar(select(func.count()).where(SubjectRow.gallery_id == row.id)) or 0
    if not point.due(digest, subjects):
        return
    request = {"gallery": gallery, "target_fpir": point.target_fpir}
    queue_unless_claimed(session, KIND, request, claim=claim(gallery))
    asked = point.model_copy(update={"rerun": Rerun(subjects=subjects, digest=digest)})
    session.execute(
        update(GalleryRow).where(GalleryRow.id == row.id).values(operating_point=asked.kept())
    )


def queue_stale(engine: Engine, galleries: Iterable[str], digest: str) -> None:
    """The same for these galleries, each in a transaction of its own: the model may be new."""
    for gallery in galleries:
        with Session(writing(engine)) as session, session.begin():
            queue_if_stale(session, gallery, digest)


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

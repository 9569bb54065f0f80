"""Calibrate a gallery: measure it, keep what was found, and measure it again when that is stale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Engine

from models.calibration import (
    CONFIDENCE,
    CannotCalibrate,
    KnownThreshold,
    calibrate,
    calibration_curve,
    stranger_similarities,
)
from models.similarity import Metric
from service.gallery.operating_point import CurvePoint, OperatingPoint
from service.gallery.reading import read_gallery
from service.serving.registry import read_card
from service.storage.database import now


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
    whole = read_gallery(engine, gallery, model.digest)
    enrolled = whole.sequences
    if enrolled.missing:
        raise NotEmbedded(
            f"{enrolled.missing} of {enrolled.total} sequences are not embedded with the active "
            "model yet; calibrate when the service is ready"
        )
    names, subjects = enrolled.subjects()
    total = len(subjects)
    similarities = stranger_similarities(
        enrolled.embeddings, subjects, model.metric, lambda done: progress(done, total)
    )
    found = calibrate(similarities, subjects, target_fpir, model.thresholds)
    curve = calibration_curve(similarities, subjects, model.thresholds)
    curve[target_fpir] = found
    point = OperatingPoint(
        threshold=found.threshold,
        interval=found.interval,
        confidence=CONFIDENCE,
        method=found.method,
        target_fpir=target_fpir,
        gallery_subjects=len(names),
        gallery_sequences=total,
        calibrated_at=now(),
        digest=model.digest,
        curve=tuple(CurvePoint.of(*item) for item in sorted(curve.items(), reverse=True)),
    )
    return Measured(gallery_id=whole.gallery_id, operating_point=point)

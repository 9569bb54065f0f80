"""Calibration: `gaitid calibrate-gallery` finds a threshold, the job keeps it with the gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models.card import Card, Metric
from models.thresholds.calibration import (
    CONFIDENCE,
    CannotCalibrate,
    calibrate,
    calibration_curve,
    stranger_similarities,
)
from service.foundation.settings import Settings
from service.gallery.operating_point import CurvePoint, OperatingPoint
from service.gallery.reading import EmbeddedSequences, read_gallery
from service.gallery.records import Progress
from service.gallery.scenes import compared
from service.job_types.commands import measuring_step
from service.job_types.requests import CalibrateRequest
from service.jobs.job import Job
from service.jobs.job_type import JobRefused, Outcome, Step
from service.jobs.scratch import scratch
from service.serving import thresholds
from service.storage.database import now


class NotEmbedded(CannotCalibrate):
    """The model has not embedded all of the gallery."""


class Measured(BaseModel):
    """What was found, and in which gallery: its name may be another's by now."""

    model_config = ConfigDict(frozen=True)

    gallery_id: str
    operating_point: OperatingPoint


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
                    "the gallery was erased, or given another model or scene transform, while it "
                    "was calibrated"
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
    *,
    plain: bool = False,
) -> Measured:
    """Find the threshold for a gallery as it is now, by the scene transform that it uses.

    With `plain` it is found without any transform. Raises `NotFound` for a missing gallery,
    `CannotCalibrate` when it is too small for the rate, and `NotEmbedded` when it is not yet
    embedded with this model.
    """
    whole = read_gallery(engine, gallery, model.digest)
    enrolled = whole.sequences
    if enrolled.missing:
        raise NotEmbedded(
            f"{enrolled.missing} of {enrolled.total} sequences are not embedded with the active "
            "model yet; calibrate when the service is ready"
        )
    scene = None if plain else whole.scene
    embeddings, metric = compared(enrolled.embeddings, model.metric, scene)
    point = operating_point(
        enrolled, embeddings, metric, model, target_fpir, progress, transformed=scene is not None
    )
    if scene is not None:
        point = point.model_copy(update={"scene": scene.version})
    return Measured(gallery_id=whole.gallery_id, operating_point=point)


def operating_point(
    enrolled: EmbeddedSequences,
    embeddings: NDArray[np.float32],
    metric: Metric,
    model: Card,
    target_fpir: float,
    progress: Progress = lambda _done, _total: None,
    *,
    transformed: bool,
) -> OperatingPoint:
    """What calibrating finds for sequences, by what is compared of them.

    The thresholds of the model's card are of its own similarities: those that are `transformed`
    have only the gallery to show what strangers reach. The point names no scene.

    Raises `CannotCalibrate` when there are too few for the rate.
    """
    background = () if transformed else model.thresholds
    names, subjects = enrolled.subjects()
    total = len(subjects)
    similarities = stranger_similarities(
        embeddings, subjects, metric, lambda done: progress(done, total)
    )
    found = calibrate(similarities, subjects, target_fpir, background)
    curve = calibration_curve(similarities, subjects, background)
    curve[target_fpir] = found
    return OperatingPoint(
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


def _found(folder: Path) -> Path:
    return scratch(folder).absolute() / "calibration.json"

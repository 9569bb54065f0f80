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

from models.card import Card, CardThreshold
from models.comparison.scene import SceneFit, SceneSums, fit
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
from service.gallery.scenes import cohort_in
from service.job_types.commands import measuring_step
from service.job_types.requests import CalibrateRequest
from service.job_types.scene_strangers import carried_over, strangers_left_out, taught
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
    if plain or whole.scene is None:
        point = plain_point(enrolled, model, target_fpir, progress)
    else:
        with Session(engine) as session:
            cohort = cohort_in(session, whole.gallery_id, model.digest)
        takes_part = taught(engine, whole.gallery_id, enrolled)
        fitted = fit_part(enrolled, takes_part, cohort)
        point = scene_point(enrolled, takes_part, cohort, fitted, model, target_fpir, progress)
        point = point.model_copy(update={"scene": whole.scene.version})
    return Measured(gallery_id=whole.gallery_id, operating_point=point)


def plain_point(
    enrolled: EmbeddedSequences,
    model: Card,
    target_fpir: float,
    progress: Progress = lambda _done, _total: None,
) -> OperatingPoint:
    """What calibrating finds without a scene transform.

    Raises `CannotCalibrate` when there are too few for the rate.
    """
    _, subjects = enrolled.subjects()
    total = len(subjects)
    strangers = stranger_similarities(
        enrolled.embeddings, subjects, model.metric, lambda done: progress(done, total)
    )
    return _point(enrolled, model, target_fpir, strangers, subjects, model.thresholds)


def fit_part(
    enrolled: EmbeddedSequences, takes_part: NDArray[np.bool_], cohort: SceneSums | None
) -> SceneFit:
    """The fit of what takes part [n] of n sequences."""
    rows = np.flatnonzero(takes_part)
    return fit(
        enrolled.embeddings[rows], [enrolled.subject_ids[row] for row in rows], cohort=cohort
    )


def scene_point(
    enrolled: EmbeddedSequences,
    takes_part: NDArray[np.bool_],
    cohort: SceneSums | None,
    fitted: SceneFit,
    model: Card,
    target_fpir: float,
    progress: Progress = lambda _done, _total: None,
) -> OperatingPoint:
    """What calibrating finds with the scene transform that is fitted to a gallery now.

    A threshold that was carried over promises no rate. The point names no version of a transform.

    Raises `CannotCalibrate` when there are too few for the rate, or a transform helps no more.
    """
    if fitted.transform is None:
        raise CannotCalibrate("the gallery's scene transform does not help any more; adapt again")
    strangers = strangers_left_out(enrolled, takes_part, cohort, fitted, progress)
    _, subjects = enrolled.subjects()
    try:
        return _point(enrolled, model, target_fpir, strangers, subjects, ())
    except CannotCalibrate:
        plain = stranger_similarities(enrolled.embeddings, subjects, model.metric)
        carried = carried_over(model.thresholds, plain, strangers)
        point = _point(enrolled, model, target_fpir, strangers, subjects, carried)
        return point.model_copy(update={"method": "carried", "curve": ()})


def _point(
    enrolled: EmbeddedSequences,
    model: Card,
    target_fpir: float,
    strangers: NDArray[np.float64],
    subjects: NDArray[np.int64],
    background: Sequence[CardThreshold],
) -> OperatingPoint:
    """The operating point for what strangers met, each played by one of `subjects` [m]."""
    found = calibrate(strangers, subjects, target_fpir, background)
    curve = calibration_curve(strangers, subjects, background)
    curve[target_fpir] = found
    return OperatingPoint(
        threshold=found.threshold,
        interval=found.interval,
        confidence=CONFIDENCE,
        method=found.method,
        target_fpir=target_fpir,
        gallery_subjects=len(enrolled.subjects()[0]),
        gallery_sequences=len(enrolled.subject_ids),
        calibrated_at=now(),
        digest=model.digest,
        curve=tuple(CurvePoint.of(*item) for item in sorted(curve.items(), reverse=True)),
    )


def _found(folder: Path) -> Path:
    return scratch(folder).absolute() / "calibration.json"

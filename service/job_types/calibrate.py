"""Calibration: `gaitid calibrate-gallery` of a gallery as it is now, with the active model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.foundation.settings import Settings
from service.job_types.calibration import Measured
from service.job_types.measuring import measuring_step
from service.job_types.requests import CalibrateRequest
from service.jobs.job import Job
from service.jobs.plan import JobRefused, Outcome, Step, scratch
from service.serving import thresholds


class CalibrateJob:
    """Finds a gallery's threshold; the gallery decides by it once the job has succeeded."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Compare everybody with everybody else, in one command."""
        request = CalibrateRequest.model_validate(job.request)
        step = measuring_step(
            self._settings, self._engine, "calibration", request.gallery, _found(folder),
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
        return Outcome({"gallery": gallery, **measured.operating_point.result()}, also=keep)


def _found(folder: Path) -> Path:
    return scratch(folder).absolute() / "calibration.json"

"""The types of job: a new one is one file here, one line, and its request in `requests`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.job_types.activation import ActivateJob
from service.job_types.adaptation import AdaptJob
from service.job_types.calibration import CalibrateJob
from service.job_types.distillation import DistillJob
from service.job_types.evaluation import EvaluateJob
from service.job_types.footage import FootageJob
from service.job_types.gallery_audit import AuditJob
from service.job_types.reindexing import ReindexJob
from service.jobs.findings import FOOTAGE
from service.jobs.job_type import JobType
from service.jobs.queue import JobClass

JOB_TYPES: Final[dict[str, Callable[[Settings, Engine], JobType]]] = {
    "activate": ActivateJob,
    "adapt": AdaptJob,
    "audit-gallery": AuditJob,
    "calibrate": CalibrateJob,
    "distill": DistillJob,
    "evaluate": EvaluateJob,
    FOOTAGE: FootageJob,
    "reindex": ReindexJob,
}

_LONG = frozenset({"distill", "evaluate"})

_FOOTAGE = frozenset({FOOTAGE})

JOB_CLASSES: Final = (
    JobClass(_LONG, only=True),
    JobClass(_LONG | _FOOTAGE, only=False),
    JobClass(_FOOTAGE, only=True),
)
"""Each has a worker, so that short jobs do not wait for hours behind a training or a clip."""


def job_types(settings: Settings, engine: Engine) -> dict[str, JobType]:
    """The job types of a deployment, as its workers run them."""
    return {name: make(settings, engine) for name, make in JOB_TYPES.items()}

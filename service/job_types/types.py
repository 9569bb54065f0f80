"""The types of job there are: a new one is one file and one line."""

from __future__ import annotations

from sqlalchemy import Engine

from service.foundation.settings import Settings
from service.job_types.activate import ActivateJob
from service.job_types.audit import AuditJob
from service.job_types.calibrate import CalibrateJob
from service.job_types.distill import DistillJob
from service.job_types.evaluate import EvaluateJob
from service.job_types.reindex import ReindexJob
from service.jobs.plan import JobType
from service.serving.lineage import TrainingRecord
from service.serving.registry import ModelRegistry


def job_types(settings: Settings, engine: Engine) -> dict[str, JobType]:
    """What a worker of this deployment can run."""
    return {
        "activate": ActivateJob(settings),
        "audit-gallery": AuditJob(settings, engine),
        "calibrate": CalibrateJob(settings, engine),
        "distill": DistillJob(
            settings, ModelRegistry(settings, engine), TrainingRecord.of(settings.data_dir)
        ),
        "evaluate": EvaluateJob(settings),
        "reindex": ReindexJob(settings),
    }

"""The types of job there are: a new one is one file and one line."""

from __future__ import annotations

from sqlalchemy import Engine

from service.jobs.activate import ActivateJob
from service.jobs.audit import AuditJob
from service.jobs.calibrate import CalibrateJob
from service.jobs.distill import DistillJob
from service.jobs.evaluate import EvaluateJob
from service.jobs.plan import JobType
from service.jobs.reindex import ReindexJob
from service.model_registry import ModelRegistry
from service.settings import Settings
from service.training_record import TrainingRecord


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

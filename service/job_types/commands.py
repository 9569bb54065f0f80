"""The command lines of jobs, and the environments that they run in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sqlalchemy import Engine

from service.access.audit.entries import Entry
from service.foundation.errors import NotFound
from service.foundation.settings import Settings
from service.jobs.job import Job
from service.jobs.job_type import JobRefused, Outcome, Step, partial
from service.serving.registry import active_checkpoint

Record = Callable[[Entry], None]
"""Adds to the audit record what is about to be committed."""


@dataclass(frozen=True, slots=True)
class EndedByItsCommand:
    """A job of one command, which ends it in the transaction of its result.

    Attributes:
        name: of its one step.
        command: of `gaitid`; its argument is the job's id.
        wanted: what it must not end without.
    """

    name: ClassVar[str]
    command: ClassVar[str]
    wanted: ClassVar[str]
    settings: Settings
    engine: Engine

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """The command; it needs no folder."""
        del folder
        command = program("service", self.command, job.id)
        return (Step(self.name, command, environment=deployment(self.settings)),)

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Never reached after that transaction."""
        del job, folder
        raise JobRefused(f"the {self.name} ended without {self.wanted}")


def program(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line of `service` or `training`, under this interpreter."""
    return (sys.executable, "-m", module, *arguments)


def device(settings: Settings) -> Mapping[str, str]:
    """The environment that hides the GPU from a run if this deployment uses the CPU."""
    return {"CUDA_VISIBLE_DEVICES": ""} if settings.device == "cpu" else {}


def deployment(settings: Settings) -> Mapping[str, str]:
    """The environment in which another process finds this deployment's database and models."""
    environment = {
        "GAITID_DATA_DIR": str(settings.data_dir),
        "GAITID_SHIPPED_MODELS_DIR": str(settings.shipped_models_dir.absolute()),
        "GAITID_MODEL": settings.model,
        "GAITID_DEVICE": settings.device,
    }
    if settings.database_url is not None:
        environment["GAITID_DATABASE_URL"] = settings.database_url
    if settings.store is not None:
        environment["GAITID_STORE"] = settings.store
    return environment


def measuring_step(
    settings: Settings, engine: Engine, name: str, gallery: str, out: Path, *command: str
) -> Step:
    """A step that measures a gallery: `gaitid COMMAND GALLERY OUT --checkpoint …`.

    `command` is its name, then its options; the checkpoint is the gallery's active model.

    Raises `JobRefused` when the gallery or its model is gone.
    """
    try:
        checkpoint = active_checkpoint(settings, engine, gallery)
    except NotFound as error:
        raise JobRefused(str(error)) from error
    verb, *options = command
    arguments = (verb, gallery, str(partial(out)), "--checkpoint", str(checkpoint), *options)
    return Step(name, program("service", *arguments), output=out, environment=deployment(settings))

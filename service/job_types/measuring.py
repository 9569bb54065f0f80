"""The step of jobs that measure a gallery under its active model with one command of `gaitid`."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from service.foundation.errors import NotFound
from service.foundation.settings import Settings
from service.job_types.datasets import deployment, program
from service.jobs.plan import JobRefused, Step, partial
from service.serving.registry import active_checkpoint


def measuring_step(
    settings: Settings, engine: Engine, name: str, gallery: str, out: Path, *command: str
) -> Step:
    """Run `gaitid COMMAND GALLERY OUT --checkpoint …`; `command` is its name, then its options.

    Raises `JobRefused` when the gallery or its model is gone.
    """
    try:
        checkpoint = active_checkpoint(settings, engine, gallery)
    except NotFound as error:
        raise JobRefused(str(error)) from error
    verb, *options = command
    arguments = (verb, gallery, str(partial(out)), "--checkpoint", str(checkpoint), *options)
    return Step(name, program("service", *arguments), output=out, environment=deployment(settings))

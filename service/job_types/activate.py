"""Activation: `gaitid activate-model`, which ends the job in the transaction that swaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from service.foundation.settings import Settings
from service.job_types.datasets import deployment, program
from service.jobs.job import Job
from service.jobs.plan import JobRefused, Outcome, Step

KIND: Final = "activate"


def claim(gallery: str) -> str:
    """What only one unfinished job that embeds or prunes a gallery may hold."""
    return f"embeddings:{gallery}"


class ActivateJob:
    """Gives a gallery another model; see `service.job_types.activation`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """One command, which resumes by itself: what it embedded is kept."""
        del folder
        command = program("service", "activate-model", job.id)
        return (Step("activation", command, environment=deployment(self._settings)),)

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Never reached after a swap, which ends the job."""
        del job, folder
        raise JobRefused("the activation ended without a swap")

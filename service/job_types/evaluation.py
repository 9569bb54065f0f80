"""Evaluation: `python -m training evaluate` of a registered model on a pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from service.foundation.errors import NotFound
from service.foundation.settings import Settings
from service.job_types.commands import device, program
from service.job_types.datasets import dataset_steps
from service.job_types.requests import EvaluateRequest
from service.jobs.job import Job
from service.jobs.job_type import JobRefused, Outcome, Step
from service.serving.model_files import read_card
from service.serving.registry import resolve


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """Measures a model; the figures are the job's metrics."""

    settings: Settings
    engine: Engine

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Export and pack the gallery if that is the dataset, then evaluate."""
        request = EvaluateRequest.model_validate(job.request)
        before, pack = dataset_steps(self.settings, request.dataset, folder)
        command = program(
            "training", "evaluate", "--checkpoint", str(self._checkpoint(request.model)),
            "--dataset", str(pack), *_protocol(request), "--json",
        )  # fmt: skip
        return (*before, Step("evaluation", command, environment=device(self.settings)))

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Name the model that was measured, with its digest."""
        del folder
        request = EvaluateRequest.model_validate(job.request)
        digest = read_card(self._checkpoint(request.model)).digest
        by = request.by()
        how = {"protocol": by} if isinstance(by, str) else {"conditions": by.model_dump()}
        return Outcome({"model": request.model, "digest": digest, **how})

    def _checkpoint(self, name: str) -> Path:
        try:
            return resolve(self.settings, self.engine, name).absolute()
        except NotFound as error:
            raise JobRefused(f"the model {name!r} is no longer there") from error


def _protocol(request: EvaluateRequest) -> list[str]:
    by = request.by()
    if isinstance(by, str):
        return ["--protocol", by]
    asked = [f"--asked={name}={','.join(patterns)}" for name, patterns in by.asked.items()]
    return [f"--enrolled={','.join(by.enrolled)}", *asked, f"--apart={by.apart:g}"]

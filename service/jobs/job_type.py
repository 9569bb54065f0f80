"""What a type of job consists of: the commands to run, and what to do once they succeeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sqlalchemy.orm import Session

from service.jobs.job import Job, JsonObject


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a job.

    A step with an `output` is skipped when that exists, so that a resumed job does not repeat it;
    its command writes to `partial(output)`, which is renamed when the command has succeeded.
    `state` is a file that the command replaces whole, again and again, and goes on from.
    `prepare` is called in the worker before the command, each time it is run; it writes small files
    that the command reads, and raises `JobRefused`.
    """

    name: str
    command: Sequence[str]
    output: Path | None = None
    state: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None


def partial(output: Path) -> Path:
    """Where a step writes before its output is complete."""
    return output.with_name(f"partial-{output.name}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job made, and how it is put where it belongs.

    Attributes:
        result: the job's result.
        before: called in a transaction of its own, which is committed first.
        in_transaction: called in the transaction that ends the job. It may raise `JobRefused`, and
            may still change `result`, which is recorded after it.
        spent: files and folders that are removed when the job has ended.

    Nothing is called under a lease that was lost: what others see of a job's work, files included,
    must be made in `before` or `in_transaction`.
    """

    result: JsonObject
    before: Callable[[Session], None] | None = None
    in_transaction: Callable[[Session], None] = lambda _session: None
    spent: Sequence[Path] = ()


class JobRefused(Exception):
    """The job cannot go on, whatever is tried; the text says why and is shown to the client."""


class JobType(Protocol):
    """One type of job, as its worker sees it. Constructed with its collaborators."""

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """The commands to run, in order; raises `JobRefused`."""

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Say what the job made; raises `JobRefused`.

        May run again after a crash, also beside an earlier run that was only paused, so it must be
        idempotent.
        """

"""What a type of job consists of: the processes to run, and what to do once they ended well."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.orm import Session

from service.jobs.job import Job, JsonObject
from service.storage.database import Table

_TRIES = 10


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a job.

    A step with an `output` is skipped when that exists, so that a resumed job does not repeat it;
    its command writes to `partial(output)`, which is renamed when the command has succeeded.
    `prepare` is called in the worker before the command, each time it is run; it writes small files
    that the command reads, and raises `JobRefused`.
    """

    name: str
    command: Sequence[str]
    output: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None


def partial(output: Path) -> Path:
    """Where a step writes before its output is complete."""
    return output.with_name(f"partial-{output.name}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job made, and the files that are of no use any more.

    `first` is done in a transaction of its own that is committed before. `records` are added, and
    `also` is called, in the transaction that ends the job; `also` may raise `JobRefused` and may
    still change the `result`, which is recorded after it. Neither is called under a lease that was
    lost, so what others see of a job's work belongs into them, files included.
    """

    result: JsonObject
    first: Callable[[Session], None] | None = None
    records: Sequence[Table] = ()
    also: Callable[[Session], None] | None = None
    spent: Sequence[Path] = ()


def scratch(folder: Path) -> Path:
    """The part of a job's folder that is removed when the job has ended."""
    return folder / "scratch"


def remove_folder(folder: Path) -> None:
    """Remove a folder that somebody else may be removing, or still writing to, if it is there."""

    def forgive_gone(_function: object, _path: str, raised: tuple[Any, ...]) -> None:
        if not isinstance(raised[1], FileNotFoundError):
            raise raised[1]

    for _ in range(_TRIES):
        try:
            shutil.rmtree(folder, onerror=forgive_gone)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # else a file appeared meanwhile
                raise
        if not folder.exists():
            return
    raise OSError(errno.ENOTEMPTY, "files appear as fast as they are removed")


class JobRefused(Exception):
    """The job cannot go on, whatever is tried; the text says why and is shown to the client."""


class JobType(Protocol):
    """One type of job, as its worker sees it. Constructed with its collaborators."""

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """The commands to run, in order; raises `JobRefused`."""

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Say what came of it and how it is put where it belongs; raises `JobRefused`.

        May run again after a crash, also beside a run that was only paused, so doing it twice must
        be the same as doing it once.
        """

"""Footage: `gaitid find-walks` lists the walks of everybody in a clip, and who they are.

Each walk is an event as soon as it ends, committed together with its silhouettes, which are sealed
as enrolled ones are. An attempt that was killed is followed by one that reads the clip from the
last moment, saved beside it, in which nobody was followed, and skips the walks that are listed
since. The clip lies in the job's scratch, as it came, until the job has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.foundation.settings import Settings
from service.job_types.commands import deployment, program
from service.jobs.findings import listed
from service.jobs.job import Job, JsonObject
from service.jobs.job_type import JobRefused, Outcome, Step, partial
from service.jobs.scratch import scratch

_ASKED = ("segmenter", "clean_silhouettes", "max_side", "max_footage_job_seconds", "audit")


class Searched(BaseModel):
    """What a clip came to, beside its walks.

    Attributes:
        segmenter: what made the silhouettes.
        seconds: that the clip lasts, as its pictures say.
        people: who were in full view, each time they came.
        refused: walks that no gait can be recognised in, by the first reason of each.
        nobody: what was seen instead of walks; None where there are some.
    """

    model_config = ConfigDict(frozen=True)

    segmenter: str
    seconds: float
    people: int
    refused: dict[str, int]
    nobody: str | None


@dataclass(frozen=True, slots=True)
class FootageJob:
    """Lists walks; the result repeats what the events said of each."""

    settings: Settings
    engine: Engine

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Read the clip, in one command."""
        clip, found = clip_in(folder).absolute(), _found(folder)
        if not clip.exists():
            raise JobRefused("the clip is no longer there; send it again")
        state = scratch(folder).absolute() / "position.json"
        command = program(
            "service", "find-walks", job.id, str(clip), str(partial(found)), str(state)
        )
        return (
            Step("footage", command, output=found, state=state, environment=self._environment()),
        )

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Repeat the walks that are listed now: an erasure takes whom it erases out of them."""
        searched = Searched.model_validate_json(_found(folder).read_bytes())
        result: JsonObject = {"gallery": job.request["gallery"], **searched.model_dump()}

        def settle(session: Session) -> None:
            result["walks"] = listed(session, job.id)

        return Outcome(result, in_transaction=settle)

    def _environment(self) -> Mapping[str, str]:
        asked = {f"GAITID_{name.upper()}": str(getattr(self.settings, name)) for name in _ASKED}
        return {**deployment(self.settings), **asked}


def clip_in(folder: Path) -> Path:
    """Where a footage job's clip lies, within the job's folder."""
    return scratch(folder) / "clip"


def _found(folder: Path) -> Path:
    return scratch(folder).absolute() / "found.json"

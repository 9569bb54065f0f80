"""A job, as an immutable snapshot of its row.

```
queued ──lease──▶ running ──▶ succeeded | failed
  │ ▲                │ │
  │ └─ worker lost, ─┘ └─ cancel ──▶ cancelling ──▶ cancelled
  │    child crashed or              (or succeeded | failed, when it ended before the signal)
  │    worker stopped
  └── cancel ──▶ cancelled
```
A job goes back to `queued` at most `job_max_attempts - 1` times for a crash; then it is `failed`.
A worker that waits for the processes of an earlier attempt to end has not begun a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

JsonObject = dict[str, Any]

LEASE_VARIABLE = "JOB_LEASE"
"""The environment variable in which a job's command finds the number of its worker's lease."""


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the job will never change again."""
        return self not in UNFINISHED


UNFINISHED = (Status.QUEUED, Status.RUNNING, Status.CANCELLING)


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is; `fraction` is in [0, 1], `eta_s` in seconds."""

    fraction: float
    step: int
    total_steps: int | None
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Job:
    """A snapshot of one job.

    `needs` is what a worker must have to take it, `traceparent` the trace that it belongs to.
    """

    id: str
    type: str
    status: Status
    request: JsonObject
    needs: Mapping[str, float]
    progress: JobProgress
    metrics: JsonObject
    result: JsonObject | None
    error: str | None
    attempts: int
    traceparent: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One entry of a job's append-only history; `sequence` counts from 1 within the job."""

    sequence: int
    at: datetime
    kind: str
    data: JsonObject

"""Jobs over HTTP: start, list, show, cancel, follow."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from service.errors import Malformed, Reason
from service.jobs.job import Job, JobEvent, Status
from service.jobs.queue import JobQueue
from service.jobs.requests import DistillRequest, EvaluateRequest

router = APIRouter(prefix="/jobs", tags=["jobs"])

_POLL_S = 0.4
_PING_S = 10


class ProgressBody(BaseModel):
    """How far a job is; `fraction` in [0, 1], `eta_s` in seconds."""

    fraction: float
    step: int
    total_steps: int | None
    eta_s: float | None


class JobBody(BaseModel):
    """A job."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    type: str
    status: Status
    progress: ProgressBody
    metrics: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

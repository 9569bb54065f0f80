"""Jobs: start, list, show, cancel, follow."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import (
    APIRouter,
    Depends,
    File,
    Form,
    Header,
    Query,
    Request,
    Response,
    UploadFile,
)
from pydantic import Field
from sqlalchemy.orm import Session
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from service.access.audit.entries import Entry
from service.access.keys import Scope as KeyScope
from service.foundation.errors import Malformed, Reason
from service.gallery.fields import (
    Cursor,
    GalleryName,
    decode_cursor,
    encode_cursor,
    parse_filter,
)
from service.http import recorded
from service.http.middleware.access import caller_of
from service.http.middleware.scopes import requires
from service.http.resources import Resources
from service.http.routes.audited import keep_change
from service.http.routes.dependencies import AppResources, FilterField
from service.http.schemas import Schema, Timestamp
from service.job_types.requests import (
    MOST_MINUTES,
    AdaptRequest,
    AuditRequest,
    CalibrateRequest,
    DistillRequest,
    EvaluateRequest,
    FootageRequest,
    ReindexRequest,
)
from service.job_types.submission import CheckRecipe, RecipeCheck, Submission
from service.jobs.event_streams import EventStreams
from service.jobs.job import Job, JobEvent, Status
from service.jobs.job_files import JobFiles
from service.jobs.presence import waiting_for
from service.jobs.queue import InTransaction, JobQueue
from service.jobs.scratch import remove_scratch
from service.storage.objects import StoreUnavailable

router = APIRouter(prefix="/jobs", tags=["jobs"])

_PING_S = 10
_FAREWELL_S = 2.0  # that a stream has to end when the service stops
_RECONNECT_MS = 1000
_LARGEST_SEQUENCE = 2**31 - 1
_LAST_EVENT_ID = Header(
    description="`id` of the last event that was received.",
    json_schema_extra={"pattern": "^[0-9]{0,10}$"},
)


class ProgressAnswer(Schema):
    """How far a job is; `fraction` in [0, 1], `eta_s` in seconds."""

    fraction: float
    step: int
    total_steps: int | None
    eta_s: float | None


class JobAnswer(Schema):
    """A job; `status` and `error` say how it stands, the answer is 200 whatever they are."""

    id: str
    type: str
    status: Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
    needs: dict[str, float]
    waiting_for: str | None = Field(
        default=None, description="Why no worker can take the queued job, asked by GET."
    )
    progress: ProgressAnswer
    metrics: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None


class JobPage(Schema):
    """Some jobs, newest first."""

    items: list[JobAnswer]
    next_cursor: str | None


def job_queue(resources: AppResources) -> JobQueue:
    """Return the deployment's queue."""
    return JobQueue.of(resources.engine, resources.settings)


@cache
def recipe_check() -> CheckRecipe:
    """Return what asks the training program about recipes; one for all, to bound how many run."""
    return RecipeCheck()


Queue = Annotated[JobQueue, Depends(job_queue)]


class NewJob:
    """What a route needs that queues a job: the use case, and what is done with its job."""

    def __init__(
        self,
        request: Request,
        response: Response,
        resources: AppResources,
        queue: Queue,
        check: Annotated[CheckRecipe, Depends(recipe_check)],
    ) -> None:
        self._request = request
        self._response = response
        self.submit = Submission(resources.settings, resources.engine, queue, check)

    def in_transaction(self, entry: Callable[[Job], Entry] = recorded.job) -> InTransaction:
        """Return what keeps and records the answer, in the transaction that queues the job."""

        def keep_answer(session: Session, job: Job) -> None:
            answer = JobAnswer.of(job)
            keep_change(session, self._request, entry(job), answer, 202, f"/jobs/{job.id}")

        return keep_answer

    def accepted(self, job: Job) -> JobAnswer:
        """Return the answer, with the job's address in `Location`."""
        self._response.headers["Location"] = f"/jobs/{job.id}"
        return JobAnswer.of(job)


Submits = Annotated[NewJob, Depends()]


@router.post("/distill", status_code=202)
def distill(new: Submits, body: DistillRequest) -> JobAnswer:
    """Train a student from registered teachers by a recipe; the result is a registered model."""
    return new.accepted(new.submit.submit(body, new.in_transaction()))


@router.post("/evaluate", status_code=202)
def evaluate(new: Submits, body: EvaluateRequest) -> JobAnswer:
    """Measure a registered model on a dataset."""
    return new.accepted(new.submit.submit(body, new.in_transaction()))


@router.post("/calibrate", status_code=202)
def calibrate(new: Submits, body: CalibrateRequest | None = None) -> JobAnswer:
    """Find the threshold at which a gallery falsely matches a stranger at most at a given rate."""
    return new.accepted(new.submit.submit(body or CalibrateRequest(), new.in_transaction()))


@router.post("/reindex", status_code=202)
def reindex(new: Submits, body: ReindexRequest | None = None) -> JobAnswer:
    """Complete a gallery's embeddings under its model, and build its indexes anew."""
    return new.accepted(new.submit.submit(body or ReindexRequest(), new.in_transaction()))


@router.post("/adapt", status_code=202)
def adapt(new: Submits, body: AdaptRequest | None = None) -> JobAnswer:
    """Fit a gallery's scene transform, and compare by it if its own people say it helps."""
    return new.accepted(new.submit.submit(body or AdaptRequest(), new.in_transaction()))


@router.post("/audit-gallery", status_code=202)
def audit_gallery(new: Submits, body: AuditRequest | None = None) -> JobAnswer:
    """List what in a gallery attracts other people: misplaced, doubled and poor sequences."""
    return new.accepted(new.submit.submit(body or AuditRequest(), new.in_transaction()))


@router.post("/footage", status_code=202, dependencies=[Depends(requires(KeyScope.IDENTIFY))])
def footage(
    new: Submits,
    footage: Annotated[UploadFile, File(description="One clip: an MP4, AVI or WebM.")],
    gallery: Annotated[GalleryName, Form()] = "default",
    top_k: Annotated[int, Form(ge=1, le=100)] = 5,
    where: FilterField = None,
    keep_minutes: Annotated[
        int,
        Form(ge=1, le=MOST_MINUTES, description="That the walks are kept, from the job's end."),
    ] = 60,
) -> JobAnswer:
    """List every walk of everybody in a long clip, and who in the gallery walks like it."""
    chosen = parse_filter(where)
    body = FootageRequest.model_validate(
        {
            "gallery": gallery,
            "top_k": top_k,
            "filter": None
            if chosen is None
            else {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in chosen.items()
            },
            "keep_minutes": keep_minutes,
        }
    )
    return new.accepted(new.submit.footage(body, footage.file, new.in_transaction()))


@router.get("")
def list_jobs(
    resources: AppResources,
    queue: Queue,
    status: Status | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[Cursor | None, Query()] = None,
) -> JobPage:
    """List jobs, newest first."""
    page = queue.page(status=status, limit=limit, cursor=decode_cursor(cursor))
    return JobPage(items=_shown(resources, page.items), next_cursor=encode_cursor(page.next_key))


@router.get("/{job_id}")
def show_job(resources: AppResources, queue: Queue, job_id: str) -> JobAnswer:
    """Show one job."""
    (job,) = _shown(resources, [queue.get(job_id)])
    return job


def _shown(resources: Resources, jobs: Sequence[Job]) -> list[JobAnswer]:
    """Jobs as they stand, with what those wait for that no worker can take."""
    lease_seconds = resources.settings.lease_seconds
    waiting = waiting_for(resources.engine, jobs, lease_seconds=lease_seconds)
    return [
        JobAnswer.of(job).model_copy(update={"waiting_for": waiting.get(job.id)}) for job in jobs
    ]


@router.post("/{job_id}/cancel")
def cancel_job(resources: AppResources, queue: Queue, job_id: str) -> JobAnswer:
    """Cancel a job: at once while it waits, within seconds when it runs."""
    job = queue.cancel(job_id)
    if job.status.final:  # no worker will remove what it has not begun with
        remove_scratch(resources.settings.jobs_dir, [job.id])
        with suppress(StoreUnavailable):  # a sweep deletes it
            JobFiles.of(resources.settings).delete([job.id])
    return JobAnswer.of(job)


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events, to the job's end."},
        204: {"description": "The job has ended and you have seen everything; do not reconnect."},
    },
)
def follow_job(
    request: Request,
    resources: AppResources,
    queue: Queue,
    job_id: str,
    last_event_id: Annotated[str | None, _LAST_EVENT_ID] = None,
) -> Response:
    """Follow a job: server-sent events numbered from 1, from the start or after Last-Event-ID."""
    after = _sequence(last_event_id)
    if queue.get(job_id).status.final and not queue.events(job_id, after=after, limit=1):
        return Response(status_code=204)
    return _Stream(resources.followers, caller_of(request.scope), job_id, after)


class _Stream(EventSourceResponse):
    """A job's events; only so many streams may be open."""

    def __init__(self, followers: EventStreams, caller: str, job_id: str, after: int) -> None:
        self._followers = followers
        self._caller = caller
        self._events = followers.follow(job_id, after)
        super().__init__(self._told(), ping=_PING_S, shutdown_grace_period=_FAREWELL_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it; raises `Unavailable`."""
        with self._followers.slot(self._caller):
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)

    async def _told(self) -> AsyncIterator[ServerSentEvent]:
        """The events, and when the service stops before the last one, to connect again soon."""
        async for event in self._events:
            yield _sent(event)
        if self._followers.ended:
            yield ServerSentEvent(retry=_RECONNECT_MS, comment="stopping: connect again")


def _sent(event: JobEvent) -> ServerSentEvent:
    data = {**event.data, "at": event.at.isoformat(timespec="milliseconds")}
    return ServerSentEvent(json.dumps(data), event=event.kind, id=str(event.sequence))


def _sequence(last_event_id: str | None) -> int:
    if not last_event_id:
        return 0
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 10):
        raise Malformed(
            "Last-Event-ID is the `id` of the last event that you received.",
            Reason("Last-Event-ID", "invalid"),
        )
    return min(int(last_event_id), _LARGEST_SEQUENCE)

"""POST /enroll."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from sqlalchemy.orm import Session

from service.access.keys import Scope
from service.foundation.errors import Invalid, Reason
from service.gallery.fields import (
    METADATA_SCHEMA,
    GalleryName,
    SubjectId,
    json_in_a_string,
    parse_metadata,
)
from service.gallery.found_walks import FoundWalk
from service.http import recorded
from service.http.middleware.scopes import requires
from service.http.routes.audited import keep_change
from service.http.routes.dependencies import (
    FrameRate,
    Input,
    ReadyResources,
    Track,
    unless_disconnected,
    uploads,
)
from service.http.schemas import REFUSED_FOOTAGE, EnrolAnswer, EnrolConflictProblem
from service.jobs.queue import JobQueue
from service.privacy.erasure import DEFAULT_GALLERY
from service.recognition.decoder_pool import Asked
from service.recognition.enrolment import Enrolled
from service.recognition.found_walks import kept_walk
from service.recognition.intake import Upload
from service.storage.database import now

router = APIRouter(tags=["recognition"], dependencies=[Depends(requires(Scope.ENROLL))])


@router.post(
    "/enroll",
    status_code=201,
    responses={
        **REFUSED_FOOTAGE,
        409: {
            "model": EnrolConflictProblem,
            "description": "A walk may be another subject's, or its Idempotency-Key is in use.",
        },
    },
)
async def enroll(
    request: Request,
    resources: ReadyResources,
    subject_id: Annotated[SubjectId, Form()],
    sequence: Annotated[
        list[UploadFile] | None,
        File(min_length=1, description="One walk each, or footage of one; 1 to 50 files."),
    ] = None,
    walk: Annotated[
        str | None,
        Form(max_length=64, description="Instead: one that a footage job lists, by its id."),
    ] = None,
    gallery: Annotated[GalleryName, Form()] = DEFAULT_GALLERY,
    kind: Input = "auto",
    track: Track = None,
    frame_rate: FrameRate = None,
    metadata: Annotated[
        str | None,
        Form(
            description='A JSON object of scalars, such as {"view": "090"}, for every file.',
            json_schema_extra=json_in_a_string(METADATA_SCHEMA),
        ),
    ] = None,
    accept_conflict: Annotated[
        bool, Form(description="Enrol also walks that may be another subject's.")
    ] = False,
) -> EnrolAnswer:
    """Enrol walks of one person: all of them, or none when one is refused."""
    if (sequence is None) == (walk is None):
        raise Invalid(
            "Send `sequence`, or `walk` of a footage job, and not both.",
            Reason("sequence", "required" if walk is None else "sent_with_walk"),
        )
    details = parse_metadata(metadata)
    sent: Sequence[Upload] | FoundWalk
    if sequence is not None:
        most = resources.settings.max_sequences_per_request
        sent = uploads(sequence, most, Asked(kind, track, frame_rate))
    else:
        queue = JobQueue.of(resources.engine, resources.settings)
        sent = await asyncio.to_thread(kept_walk, resources.engine, queue, str(walk), now())

    def record_and_keep(session: Session, enrolled: Enrolled) -> None:
        answer = EnrolAnswer.of(enrolled)
        keep_change(session, request, recorded.enrolment(enrolled), answer, 201)

    enrolled = await unless_disconnected(
        request,
        resources.enrolment.enrol(
            gallery,
            subject_id,
            sent,
            details,
            record_and_keep,
            accept_conflict=accept_conflict,
        ),
    )
    return EnrolAnswer.of(enrolled)

"""Subjects: list, show, correct, erase."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy.orm import Session

from service.access.keys import Scope
from service.gallery import editing
from service.gallery.editing import Corrected
from service.gallery.fields import Cursor, GalleryName, decode_cursor, encode_cursor
from service.gallery.listing import subject, subjects
from service.gallery.records import SubjectRecord
from service.http import recorded
from service.http.middleware.idempotency import HOLD
from service.http.routes.access import requires
from service.http.routes.audited import correct, record_erasure
from service.http.routes.dependencies import Held
from service.http.schemas import (
    CoverageAnswer,
    MergeRequest,
    ReceiptAnswer,
    SequenceAnswer,
    SubjectAnswer,
    SubjectChange,
    SubjectPage,
    SubjectWithSequences,
)
from service.privacy.erasure import DEFAULT_GALLERY
from service.storage.kept_answers import Answer, keep

router = APIRouter(prefix="/subjects", tags=["subjects"])
_reader = Depends(requires(Scope.IDENTIFY, Scope.ENROLL))
_admin = Depends(requires(Scope.ADMIN))


@router.get("", dependencies=[_reader])
def list_subjects(
    held: Held,
    gallery: Annotated[GalleryName, Query()] = DEFAULT_GALLERY,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[Cursor | None, Query()] = None,
) -> SubjectPage:
    """List a gallery's subjects by id."""
    page = subjects(held.engine, gallery, limit=limit, after=decode_cursor(cursor))
    return SubjectPage(
        items=[SubjectAnswer.of(record) for record in page.items],
        next_cursor=encode_cursor(page.next_key),
    )


@router.get("/{subject_id}", dependencies=[_reader])
def show_subject(
    held: Held, subject_id: str, gallery: Annotated[GalleryName, Query()] = DEFAULT_GALLERY
) -> SubjectWithSequences:
    """Show a subject, its sequences, and which views and conditions are missing."""
    record, sequences, covered = subject(held.engine, gallery, subject_id)
    return SubjectWithSequences(
        subject_id=record.subject_id,
        display_name=record.display_name,
        gallery=record.gallery,
        sequences=[SequenceAnswer.of(item) for item in sequences],
        coverage=CoverageAnswer.of(covered),
        created_at=record.created_at,
    )


@router.patch("/{subject_id}", dependencies=[_admin])
async def edit_subject(
    request: Request,
    subject_id: str,
    body: SubjectChange,
    gallery: Annotated[GalleryName, Query()] = DEFAULT_GALLERY,
) -> SubjectAnswer:
    """Set what people call a subject (null: nothing), or give it another id."""
    given = body.model_fields_set
    corrected = await correct(
        request,
        partial(
            editing.edit_subject,
            gallery=gallery,
            subject_id=subject_id,
            new_id=body.subject_id if "subject_id" in given else None,
            display_name=body.display_name if "display_name" in given else ...,
        ),
        lambda made: recorded.subject_edit(made, given),
    )
    return SubjectAnswer.of(corrected.record)


@router.post("/{subject_id}/merge", dependencies=[_admin])
async def merge_subjects(
    request: Request,
    subject_id: str,
    body: MergeRequest,
    gallery: Annotated[GalleryName, Query()] = DEFAULT_GALLERY,
) -> SubjectAnswer:
    """Make two subjects one: every walk becomes the other's, who is answered as it is then."""
    hold = request.scope.get(HOLD)

    def keep_answer(session: Session, made: Corrected[SubjectRecord]) -> None:
        content = SubjectAnswer.of(made.record).model_dump_json()
        keep(session, hold, Answer(200, {"content-type": "application/json"}, content))

    corrected = await correct(
        request,
        partial(editing.merge_subjects, gallery=gallery, subject_id=subject_id, into=body.into),
        recorded.merging,
        keep_answer,
    )
    return SubjectAnswer.of(corrected.record)


@router.delete("/{subject_id}", dependencies=[_admin])
async def erase_subject(
    request: Request,
    held: Held,
    subject_id: str,
    gallery: Annotated[GalleryName, Query()] = DEFAULT_GALLERY,
) -> ReceiptAnswer:
    """Erase a subject with every sequence."""
    receipt = await held.erasure.subject(gallery, subject_id)
    await record_erasure(request, "subject", receipt)
    return ReceiptAnswer.of(receipt)

"""Subjects: list, show, erase."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from service.access.keys import Scope
from service.gallery.fields import Cursor, GalleryName, decode_cursor, encode_cursor
from service.gallery.listing import subject, subjects
from service.http.middleware.scopes import requires
from service.http.routes.audited import record_erasure
from service.http.routes.dependencies import AppResources
from service.http.schemas import (
    CoverageAnswer,
    ReceiptAnswer,
    SequenceAnswer,
    SubjectAnswer,
    SubjectPage,
    SubjectWithSequences,
)
from service.privacy.erasure import DEFAULT_GALLERY

router = APIRouter(prefix="/subjects", tags=["subjects"])
_reader = Depends(requires(Scope.IDENTIFY, Scope.ENROLL))
_admin = Depends(requires(Scope.ADMIN))


@router.get("", dependencies=[_reader])
def list_subjects(
    resources: AppResources,
    gallery: Annotated[GalleryName, Query()] = DEFAULT_GALLERY,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[Cursor | None, Query()] = None,
) -> SubjectPage:
    """List a gallery's subjects by id."""
    page = subjects(resources.engine, gallery, limit=limit, after=decode_cursor(cursor))
    return SubjectPage(
        items=[SubjectAnswer.of(record) for record in page.items],
        next_cursor=encode_cursor(page.next_key),
    )


@router.get("/{subject_id}", dependencies=[_reader])
def show_subject(
    resources: AppResources,
    subject_id: str,
    gallery: Annotated[GalleryName, Query()] = DEFAULT_GALLERY,
) -> SubjectWithSequences:
    """Show a subject, its sequences, and which views and conditions are missing."""
    record, sequences, covered = subject(resources.engine, gallery, subject_id)
    return SubjectWithSequences(
        subject_id=record.subject_id,
        gallery=record.gallery,
        sequences=[SequenceAnswer.of(item) for item in sequences],
        coverage=CoverageAnswer.of(covered),
        created_at=record.created_at,
    )


@router.delete("/{subject_id}", dependencies=[_admin])
async def erase_subject(
    request: Request,
    resources: AppResources,
    subject_id: str,
    gallery: Annotated[GalleryName, Query()] = DEFAULT_GALLERY,
) -> ReceiptAnswer:
    """Erase a subject with every sequence."""
    receipt = await resources.erasure.subject(gallery, subject_id)
    await record_erasure(request, "subject", receipt)
    return ReceiptAnswer.of(receipt)

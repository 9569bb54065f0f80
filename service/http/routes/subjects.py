"""Subjects: list, show, correct, erase."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from service.access.keys import Scope
from service.gallery import editing
from service.gallery.fields import (
    Cursor,
    GalleryName,
    decode_cursor,
    encode_cursor,
    enrolled_metadata,
)
from service.gallery.listing import subject, subjects
from service.http import recorded
from service.http.middleware.scopes import requires
from service.http.routes.audited import correct, record_erasure
from service.http.routes.dependencies import AppResources
from service.http.schemas import (
    CoverageAnswer,
    ReceiptAnswer,
    SequenceAnswer,
    SubjectAnswer,
    SubjectChange,
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
        display_name=record.display_name,
        metadata=record.metadata,
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
    """Describe a subject, give it another id, or make it one with another subject.

    After a merge, `display_name` and `metadata` are those of the subject that remains.
    """
    given = body.model_fields_set
    corrected = await correct(
        request,
        partial(
            editing.edit_subject,
            gallery=gallery,
            subject_id=subject_id,
            new_id=body.subject_id,
            merge_into=body.merge_into,
            display_name=body.display_name if "display_name" in given else ...,
            metadata=enrolled_metadata(body.metadata) if "metadata" in given else None,
        ),
        lambda made: recorded.subject_edit(made, given),
    )
    return SubjectAnswer.of(corrected.record)


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

"""Galleries: list, create, show, erase."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, File, Query, Request, Response, UploadFile
from sqlalchemy.orm import Session

from service.access.audit.entries import Entry
from service.access.keys import Scope
from service.foundation.errors import Forbidden, Reason
from service.gallery.fields import (
    Cursor,
    GalleryName,
    check_metadata,
    decode_cursor,
    encode_cursor,
)
from service.gallery.listing import galleries
from service.gallery.records import GalleryRecord
from service.http import recorded
from service.http.middleware.scopes import requires
from service.http.routes.audited import keep_change, record_change, record_erasure
from service.http.routes.dependencies import (
    AppResources,
    ReadyResources,
    unless_disconnected,
    uploads,
)
from service.http.schemas import (
    CohortAnswer,
    GalleryAnswer,
    GalleryChange,
    GalleryPage,
    GalleryRequest,
    ReceiptAnswer,
)

router = APIRouter(prefix="/galleries", tags=["galleries"])
_reader = Depends(requires(Scope.IDENTIFY, Scope.ENROLL))
_admin = Depends(requires(Scope.ADMIN))


@router.get("", dependencies=[_reader])
def list_galleries(
    resources: AppResources,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[Cursor | None, Query()] = None,
) -> GalleryPage:
    """List galleries by name."""
    page = galleries(resources.engine, limit=limit, after=decode_cursor(cursor))
    return GalleryPage(
        items=[GalleryAnswer.beside(resources.model, record) for record in page.items],
        next_cursor=encode_cursor(page.next_key),
    )


@router.post("", status_code=201, dependencies=[_admin])
def create_gallery(
    request: Request, response: Response, resources: AppResources, body: GalleryRequest
) -> GalleryAnswer:
    """Create an empty gallery."""
    location = f"/galleries/{body.name}"

    def keep_answer(session: Session, record: GalleryRecord) -> None:
        answer = GalleryAnswer.beside(resources.model, record)
        keep_change(session, request, recorded.new_gallery(record), answer, 201, location)

    metadata = check_metadata(body.metadata)
    record = resources.store.create(body.name, metadata, body.max_age_days, keep_answer)
    response.headers["Location"] = location
    return GalleryAnswer.beside(resources.model, record)


@router.get("/{gallery}", dependencies=[_reader])
def show_gallery(resources: AppResources, gallery: str) -> GalleryAnswer:
    """Show one gallery."""
    return GalleryAnswer.beside(resources.model, resources.store.gallery(gallery))


@router.patch("/{gallery}", dependencies=[_admin])
def change_gallery(resources: AppResources, gallery: str, body: GalleryChange) -> GalleryAnswer:
    """Set how long a gallery keeps its sequences; null keeps them until somebody erases them."""
    resources.store.keep_for(gallery, body.max_age_days)
    return GalleryAnswer.beside(resources.model, resources.store.gallery(gallery))


@router.post("/{gallery}/cohort", dependencies=[Depends(requires(Scope.ENROLL))])
async def add_to_cohort(
    request: Request,
    resources: ReadyResources,
    gallery: GalleryName,
    sequence: Annotated[
        list[UploadFile], File(min_length=1, description="One walk each, 1 to 50 files.")
    ],
) -> CohortAnswer:
    """Add walks of whoever passed to the gallery's sums; nothing else of them is kept."""
    if not resources.settings.cohort:
        raise Forbidden(
            "This deployment keeps nothing of people who only pass: its operator has to set "
            "GAITID_COHORT=true first.",
            Reason("gallery", "cohort_off"),
            slug="cohort-off",
        )

    def record_and_keep(session: Session, walks_seen: int) -> None:
        entry = Entry("add_to_cohort", gallery, None, {"sequences": len(sequence)})
        keep_change(session, request, entry, CohortAnswer(walks_seen=walks_seen), 200)

    walks = uploads(sequence, resources.settings.max_sequences_per_request)
    walks_seen = await unless_disconnected(
        request, resources.cohort.add(gallery, walks, record_and_keep)
    )
    return CohortAnswer(walks_seen=walks_seen)


@router.delete("/{gallery}/cohort", status_code=204, dependencies=[_admin])
def forget_cohort(request: Request, resources: AppResources, gallery: str) -> None:
    """Delete the gallery's sums of whoever passed, and the scene transform that has them in it."""
    resources.cohort.forget(
        gallery, lambda _session: record_change(request, Entry("forget_cohort", gallery))
    )


@router.delete("/{gallery}", dependencies=[_admin])
async def erase_gallery(request: Request, resources: AppResources, gallery: str) -> ReceiptAnswer:
    """Erase a gallery with everything in it; of `default` an empty one remains."""
    receipt = await resources.erasure.gallery(gallery)
    await record_erasure(request, "gallery", receipt)
    return ReceiptAnswer.of(receipt)

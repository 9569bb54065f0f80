"""POST /identify and POST /verify."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile

from service.access.keys import Scope
from service.gallery.fields import (
    FILTER_SCHEMA,
    GalleryName,
    SubjectId,
    ThresholdField,
    json_in_a_string,
    parse_filter,
)
from service.http import recorded
from service.http.middleware.scopes import requires
from service.http.routes.audited import record_answer
from service.http.routes.dependencies import ReadyResources, unless_disconnected, upload
from service.http.schemas import IdentifyAnswer, VerifyAnswer
from service.privacy.erasure import DEFAULT_GALLERY

router = APIRouter(tags=["recognition"], dependencies=[Depends(requires(Scope.IDENTIFY))])


@router.post("/identify", response_model=IdentifyAnswer)
async def identify(
    request: Request,
    resources: ReadyResources,
    sequence: Annotated[UploadFile, File(description="One walk.")],
    gallery: Annotated[GalleryName, Form()] = DEFAULT_GALLERY,
    top_k: Annotated[int, Form(ge=1, le=100)] = 5,
    threshold: Annotated[ThresholdField | None, Form()] = None,
    where: Annotated[
        str | None,
        Form(
            alias="filter",
            description="A JSON object: only sequences whose metadata equal it, such as "
            '{"view": ["000", "180"]}; a list means any of its values.',
            json_schema_extra=json_in_a_string(FILTER_SCHEMA),
        ),
    ] = None,
    explain: Annotated[bool, Form(description="Add the similarity of each part.")] = False,
) -> Response:
    """Say who in the gallery walks like this, if anybody."""
    identified = await unless_disconnected(
        request,
        resources.identification.identify(
            gallery,
            upload(sequence),
            top_k=top_k,
            threshold=threshold,
            where=parse_filter(where),
            explain=explain,
        ),
    )
    entry = recorded.identification(identified, top_k=top_k, filtered=where is not None)
    await record_answer(request, entry)
    # `parts` are left out unless explained; everything else that is null is said to be.
    unexplained = None if explain else {"candidates": {"__all__": {"parts"}}}
    body = IdentifyAnswer.of(identified).model_dump_json(exclude=unexplained)
    return Response(body, media_type="application/json")


@router.post("/verify")
async def verify(
    request: Request,
    resources: ReadyResources,
    subject_id: Annotated[SubjectId, Form()],
    sequence: Annotated[UploadFile, File(description="One walk.")],
    gallery: Annotated[GalleryName, Form()] = DEFAULT_GALLERY,
    threshold: Annotated[ThresholdField | None, Form()] = None,
) -> VerifyAnswer:
    """Say whether this subject walks like this."""
    verified = await unless_disconnected(
        request,
        resources.identification.verify(gallery, subject_id, upload(sequence), threshold=threshold),
    )
    await record_answer(request, recorded.verification(verified))
    return VerifyAnswer.of(verified)

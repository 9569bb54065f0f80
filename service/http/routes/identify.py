"""POST /identify and POST /verify."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile

from service.access.keys import Scope
from service.gallery import listing
from service.gallery.fields import (
    FILTER_SCHEMA,
    GalleryName,
    SubjectId,
    ThresholdField,
    json_in_a_string,
    parse_filter,
)
from service.http import recorded
from service.http.resources import Resources
from service.http.routes.access import requires
from service.http.routes.audited import record_answer
from service.http.routes.dependencies import HeldReady, unless_disconnected, walk
from service.http.schemas import IdentifyAnswer, VerifyAnswer
from service.privacy.erasure import DEFAULT_GALLERY

DisplayNames = Annotated[
    bool, Form(description="Add what people call each subject, `display_name`.")
]

router = APIRouter(tags=["recognition"], dependencies=[Depends(requires(Scope.IDENTIFY))])


@router.post("/identify", response_model=IdentifyAnswer)
async def identify(
    request: Request,
    held: HeldReady,
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
    display_names: DisplayNames = False,
) -> Response:
    """Say who in the gallery walks like this, if anybody."""
    identified = await unless_disconnected(
        request,
        held.identification.identify(
            gallery,
            walk(sequence),
            top_k=top_k,
            threshold=threshold,
            where=parse_filter(where),
            explain=explain,
        ),
    )
    entry = recorded.identification(identified, top_k=top_k, filtered=where is not None)
    await record_answer(request, entry)
    who = [item.candidate.subject_id for item in identified.candidates]
    names = await _names(held, gallery, who) if display_names else {}
    # What was not asked for is left out; everything else that is null is said to be.
    asked = {"parts": explain, "display_name": display_names}
    left_out = {name for name, wanted in asked.items() if not wanted}
    body = IdentifyAnswer.of(identified, names).model_dump_json(
        exclude={"candidates": {"__all__": left_out}}
    )
    return Response(body, media_type="application/json")


@router.post("/verify", response_model=VerifyAnswer)
async def verify(
    request: Request,
    held: HeldReady,
    subject_id: Annotated[SubjectId, Form()],
    sequence: Annotated[UploadFile, File(description="One walk.")],
    gallery: Annotated[GalleryName, Form()] = DEFAULT_GALLERY,
    threshold: Annotated[ThresholdField | None, Form()] = None,
    display_names: DisplayNames = False,
) -> Response:
    """Say whether this subject walks like this."""
    verified = await unless_disconnected(
        request,
        held.verification.verify(gallery, subject_id, walk(sequence), threshold=threshold),
    )
    await record_answer(request, recorded.verification(verified))
    names = await _names(held, gallery, [subject_id]) if display_names else {}
    body = VerifyAnswer.of(verified, names).model_dump_json(
        exclude=None if display_names else {"display_name"}
    )
    return Response(body, media_type="application/json")


async def _names(held: Resources, gallery: str, subject_ids: Sequence[str]) -> dict[str, str]:
    """Read as the answer is made, so that it is what the subjects are called now."""
    return await asyncio.to_thread(listing.display_names, held.engine, gallery, subject_ids)

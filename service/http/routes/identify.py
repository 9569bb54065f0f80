"""POST /identify and POST /verify."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile

from service.access.keys import Scope
from service.foundation.errors import Invalid, Reason
from service.gallery.fields import (
    GalleryName,
    GalleryNames,
    SubjectId,
    ThresholdField,
    ViewField,
    parse_filter,
)
from service.gallery.listing import descriptions
from service.gallery.records import Description
from service.http import recorded
from service.http.middleware.scopes import requires
from service.http.resources import Resources
from service.http.routes.audited import record_answer
from service.http.routes.dependencies import (
    FilterField,
    FrameRate,
    Input,
    ReadyResources,
    Track,
    unless_disconnected,
    upload,
    uploads,
)
from service.http.schemas import REFUSED_FOOTAGE, IdentifyAnswer, VerifyAnswer
from service.privacy.erasure import DEFAULT_GALLERY
from service.recognition.decoder_pool import Asked
from service.recognition.intake import Upload

router = APIRouter(tags=["recognition"], dependencies=[Depends(requires(Scope.IDENTIFY))])
_DESCRIBED = {"display_name", "metadata"}
Include = Annotated[
    Literal["metadata"] | None, Form(description="Add the display name and the metadata.")
]

_MOST_PROBES = 10
Probes = Annotated[
    list[UploadFile],
    File(
        min_length=1,
        description="Walks, or footage, of one person: 1 to 10 files, which are fused.",
        max_length=_MOST_PROBES,
    ),
]
View = Annotated[ViewField | None, Form()]


@router.post("/identify", response_model=IdentifyAnswer, responses=REFUSED_FOOTAGE)
async def identify(
    request: Request,
    resources: ReadyResources,
    sequence: Probes,
    gallery: Annotated[GalleryName, Form()] = DEFAULT_GALLERY,
    galleries: Annotated[GalleryNames | None, Form()] = None,
    kind: Input = "auto",
    track: Track = None,
    frame_rate: FrameRate = None,
    top_k: Annotated[int, Form(ge=1, le=100)] = 5,
    threshold: Annotated[ThresholdField | None, Form()] = None,
    where: FilterField = None,
    explain: Annotated[bool, Form(description="Add the similarity of each part.")] = False,
    view: View = None,
    include: Include = None,
) -> Response:
    """Say who in the gallery, or in several `galleries`, walks like this, if anybody."""
    first, *others = [gallery] if galleries is None else await _several(request, galleries)
    identified = await unless_disconnected(
        request,
        resources.identification.identify(
            first,
            _probes(sequence, Asked(kind, track, frame_rate)),
            top_k=top_k,
            threshold=threshold,
            where=parse_filter(where),
            explain=explain,
            view=view,
            others=others,
        ),
    )
    for entry in recorded.identification(identified, top_k=top_k, filtered=where is not None):
        await record_answer(request, entry)
    found = (item.candidate.sequence_id for item in identified.candidates)
    answer = IdentifyAnswer.beside(await _said(resources, include, *found), identified)
    # What was not asked for is left out; everything else that is null is said to be.
    unasked = (set() if explain else {"parts"}) | (set() if include else _DESCRIBED)
    if galleries is None:
        left_out: dict[str, Any] = {"galleries": True}
        unasked |= {"gallery", "threshold"}
    else:
        left_out = {}
    body = answer.model_dump_json(exclude=left_out | {"candidates": {"__all__": unasked}})
    return Response(body, media_type="application/json")


@router.post("/verify", response_model=VerifyAnswer, responses=REFUSED_FOOTAGE)
async def verify(
    request: Request,
    resources: ReadyResources,
    subject_id: Annotated[SubjectId, Form()],
    sequence: Probes,
    gallery: Annotated[GalleryName, Form()] = DEFAULT_GALLERY,
    kind: Input = "auto",
    track: Track = None,
    frame_rate: FrameRate = None,
    threshold: Annotated[ThresholdField | None, Form()] = None,
    view: View = None,
    include: Include = None,
) -> Response:
    """Say whether this subject walks like this."""
    verified = await unless_disconnected(
        request,
        resources.identification.verify(
            gallery,
            subject_id,
            _probes(sequence, Asked(kind, track, frame_rate)),
            threshold=threshold,
            view=view,
        ),
    )
    await record_answer(request, recorded.verification(verified))
    said = await _said(resources, include, verified.closest.sequence_id)
    unasked = None if include else _DESCRIBED
    body = VerifyAnswer.beside(said, verified).model_dump_json(exclude=unasked)
    return Response(body, media_type="application/json")


async def _several(request: Request, galleries: str) -> list[str]:
    """The galleries that are named; raises `Invalid`."""
    names = galleries.split(",")
    if "gallery" in await request.form():
        raise Invalid(
            "Send either `gallery` or `galleries`.",
            Reason("galleries", "beside_gallery"),
            slug="invalid-field",
        )
    if len(set(names)) < len(names):
        raise Invalid(
            "Name each gallery in `galleries` once.",
            Reason("galleries", "named_twice"),
            slug="invalid-field",
        )
    return names


def _probes(sequence: list[UploadFile], asked: Asked) -> list[Upload]:
    if len(sequence) == 1:
        return [upload(sequence[0], asked)]
    return uploads(sequence, _MOST_PROBES, asked)


async def _said(
    resources: Resources, include: str | None, *sequence_ids: str
) -> Mapping[str, Description]:
    if include is None:
        return {}
    return await asyncio.to_thread(descriptions, resources.engine, sequence_ids)

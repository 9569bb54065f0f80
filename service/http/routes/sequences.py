"""Sequences: show, correct, return the silhouettes, erase."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from PIL import Image

from models.silhouettes.normalise import gait_energy_image
from service.access.keys import Scope
from service.gallery import editing
from service.gallery.fields import enrolled_metadata
from service.gallery.records import Silhouettes
from service.http import recorded
from service.http.middleware.scopes import requires
from service.http.routes.audited import correct, record_erasure, record_read
from service.http.routes.dependencies import AppResources
from service.http.schemas import ReceiptAnswer, SequenceAnswer, SequenceChange

router = APIRouter(prefix="/sequences", tags=["sequences"])
_reader = Depends(requires(Scope.IDENTIFY, Scope.ENROLL))
_admin = Depends(requires(Scope.ADMIN))
_FRAME_MS = 40


def _gives(media_type: str) -> dict[str, Any]:
    """Return the options of a route that gives out what is made of a walk's silhouettes."""
    responses: dict[int, Any] = {200: {"content": {media_type: {}}}}
    return {"dependencies": [_reader], "response_class": Response, "responses": responses}


@router.get("/{sequence_id}", dependencies=[_reader])
def show_sequence(resources: AppResources, sequence_id: str) -> SequenceAnswer:
    """Show a sequence, without its silhouettes."""
    return SequenceAnswer.of(resources.store.sequence(sequence_id))


@router.get(
    "/{sequence_id}/silhouettes.npz",
    **_gives("application/x-npz"),
)
def silhouettes_as_arrays(request: Request, resources: AppResources, sequence_id: str) -> Response:
    """Return the normalised silhouettes: `silhouettes`, uint8 [s, 64, 64]."""
    file = BytesIO()
    np.savez_compressed(file, silhouettes=_given(request, resources, sequence_id, "npz"))
    return Response(file.getvalue(), media_type="application/x-npz")


@router.get(
    "/{sequence_id}/silhouettes.gif",
    **_gives("image/gif"),
)
def silhouettes_as_film(request: Request, resources: AppResources, sequence_id: str) -> Response:
    """Show the normalised silhouettes as an animated GIF, 25 frames a second."""
    frames = _given(request, resources, sequence_id, "gif")
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = BytesIO()
    first.save(
        file, "GIF", save_all=True, append_images=rest, duration=_FRAME_MS, loop=0, optimize=False
    )
    return Response(file.getvalue(), media_type="image/gif")


@router.get(
    "/{sequence_id}/gei.png",
    **_gives("image/png"),
)
def energy_image(request: Request, resources: AppResources, sequence_id: str) -> Response:
    """Show the gait energy image, 44 x 64 pixels."""
    energy = gait_energy_image(_given(request, resources, sequence_id, "gei"))
    file = BytesIO()
    Image.fromarray(np.rint(energy * 255).astype(np.uint8)).save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")


@router.patch("/{sequence_id}", dependencies=[_admin])
async def edit_sequence(request: Request, sequence_id: str, body: SequenceChange) -> SequenceAnswer:
    """Replace a sequence's metadata, or give it to another subject of its gallery.

    A subject goes with its last sequence.
    """
    given = body.model_fields_set
    corrected = await correct(
        request,
        partial(
            editing.edit_sequence,
            sequence_id=sequence_id,
            metadata=enrolled_metadata(body.metadata) if "metadata" in given else None,
            subject_id=body.subject_id,
        ),
        lambda made: recorded.sequence_edit(made, given),
    )
    return SequenceAnswer.of(corrected.record)


@router.delete("/{sequence_id}", dependencies=[_admin])
async def erase_sequence(
    request: Request, resources: AppResources, sequence_id: str
) -> ReceiptAnswer:
    """Erase a sequence, and its subject when it was the last one."""
    receipt = await resources.erasure.sequence(sequence_id)
    await record_erasure(request, "sequence", receipt)
    return ReceiptAnswer.of(receipt)


def _given(request: Request, resources: AppResources, sequence_id: str, form: str) -> Silhouettes:
    """Return a walk's silhouettes, after recording that they are given out."""
    silhouettes = resources.store.silhouettes(sequence_id)
    record_read(request, recorded.silhouettes(resources.store.sequence(sequence_id), form))
    return silhouettes

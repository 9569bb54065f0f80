"""Sequences: show, correct, give the silhouettes back, erase."""

from __future__ import annotations

from functools import partial
from io import BytesIO

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from PIL import Image

from models.silhouettes.gei import gait_energy_image
from service.access.keys import Scope
from service.gallery import editing
from service.gallery.fields import enrolled_metadata
from service.gallery.records import Silhouettes
from service.http import recorded
from service.http.routes.access import requires
from service.http.routes.audited import correct, record_erasure, record_read
from service.http.routes.dependencies import Held
from service.http.schemas import ReceiptAnswer, SequenceAnswer, SequenceChange

router = APIRouter(prefix="/sequences", tags=["sequences"])
_reader = Depends(requires(Scope.IDENTIFY, Scope.ENROLL))
_admin = Depends(requires(Scope.ADMIN))
_FRAME_MS = 40


@router.get("/{sequence_id}", dependencies=[_reader])
def show_sequence(held: Held, sequence_id: str) -> SequenceAnswer:
    """Show a sequence, without its silhouettes."""
    return SequenceAnswer.of(held.store.sequence(sequence_id))


@router.get(
    "/{sequence_id}/silhouettes.npz",
    dependencies=[_reader],
    response_class=Response,
    responses={200: {"content": {"application/x-npz": {}}}},
)
def silhouettes_as_arrays(request: Request, held: Held, sequence_id: str) -> Response:
    """Give the normalised silhouettes back: `silhouettes`, uint8 [s, 64, 64]."""
    file = BytesIO()
    np.savez_compressed(file, silhouettes=_given(request, held, sequence_id, "npz"))
    return Response(file.getvalue(), media_type="application/x-npz")


@router.get(
    "/{sequence_id}/silhouettes.gif",
    dependencies=[_reader],
    response_class=Response,
    responses={200: {"content": {"image/gif": {}}}},
)
def silhouettes_as_film(request: Request, held: Held, sequence_id: str) -> Response:
    """Show the normalised silhouettes as an animated GIF, 25 frames a second."""
    frames = _given(request, held, sequence_id, "gif")
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = BytesIO()
    first.save(
        file, "GIF", save_all=True, append_images=rest, duration=_FRAME_MS, loop=0, optimize=False
    )
    return Response(file.getvalue(), media_type="image/gif")


@router.get(
    "/{sequence_id}/gei.png",
    dependencies=[_reader],
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
def energy_image(request: Request, held: Held, sequence_id: str) -> Response:
    """Show the gait energy image, 44 x 64 pixels."""
    energy = gait_energy_image(_given(request, held, sequence_id, "gei"))
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
            subject_id=body.subject_id if "subject_id" in given else None,
        ),
        lambda made: recorded.sequence_edit(made, given),
    )
    return SequenceAnswer.of(corrected.record)


@router.delete("/{sequence_id}", dependencies=[_admin])
async def erase_sequence(request: Request, held: Held, sequence_id: str) -> ReceiptAnswer:
    """Erase a sequence, and its subject when it was the last one."""
    receipt = await held.erasure.sequence(sequence_id)
    await record_erasure(request, "sequence", receipt)
    return ReceiptAnswer.of(receipt)


def _given(request: Request, held: Held, sequence_id: str, form: str) -> Silhouettes:
    """A walk's silhouettes, once it is recorded to whom they were given."""
    silhouettes = held.store.silhouettes(sequence_id)
    record_read(request, recorded.silhouettes(held.store.sequence(sequence_id), form))
    return silhouettes

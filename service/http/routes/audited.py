"""How routes add to the audit record, and the record itself as an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

from service.access.audit.entries import Actor, Entry
from service.access.keys import Scope
from service.foundation.errors import Reason, StorageFull
from service.gallery.fields import GalleryName, Moment
from service.gallery.records import ErasureReceipt
from service.http import recorded
from service.http.middleware.access import CALLER
from service.http.middleware.audit import RECORDED
from service.http.routes.access import requires
from service.http.routes.dependencies import AppResources, get_resources
from service.http.schemas import AuditLine
from service.storage.database import storage_trouble


class ErasureUnrecorded(StorageFull):
    """An erasure that was made, but could not be recorded: not to be tried again, as a 503 is."""

    slug, title = "erasure-unrecorded", "Erased, but not recorded"


router = APIRouter(prefix="/audit", tags=["audit"], dependencies=[Depends(requires(Scope.ADMIN))])
MEDIA_TYPE = "application/x-ndjson"
_PIECE = 500  # lines


async def record_answer(request: Request, entry: Entry) -> None:
    """Record something that was read, before it is sent."""
    await get_resources(request).audit.answered(entry, _caller(request))
    request.scope[RECORDED] = True


def record_change(request: Request, entry: Entry) -> None:
    """Record a change, for the transaction that makes it."""
    get_resources(request).audit.changed(entry, _caller(request))
    request.scope[RECORDED] = True


def record_read(request: Request, entry: Entry) -> None:
    """The same as `record_answer`, for routes that run in a thread."""
    get_resources(request).audit.read(entry, _caller(request))


async def record_erasure(
    request: Request, what: Literal["subject", "sequence", "gallery"], receipt: ErasureReceipt
) -> None:
    """Forget whom it erased, and record an erasure that was committed; from a full disk, too.

    Raises `ErasureUnrecorded`.
    """
    audit, reserve = get_resources(request).audit, get_resources(request).reserve

    def forget_and_record() -> None:
        if what == "gallery":
            audit.forget(receipt.gallery)
        elif receipt.subjects and receipt.subject_id is not None:
            audit.forget(receipt.gallery, receipt.subject_id)
        audit.changed(recorded.erasure(what, receipt), _caller(request))

    try:
        await asyncio.to_thread(reserve.spend, forget_and_record)
    except (OSError, SQLAlchemyError) as error:
        if storage_trouble(error) is None:
            raise
        raise ErasureUnrecorded(
            f"Erased for good, with {len(receipt.sequence_ids)} sequences, but the audit record "
            f"could not be written to say so: note the receipt {receipt.receipt_id}, free space "
            "where the service keeps its data, and do not send the request again.",
            Reason("audit", "not_recorded"),
        ) from error
    request.scope[RECORDED] = True


def _caller(request: Request) -> Actor:
    return Actor.of(request.scope.get(CALLER))


@router.get(
    "",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "One JSON object a line, oldest first.",
            "content": {MEDIA_TYPE: {"schema": AuditLine.model_json_schema()}},
        }
    },
)
async def read_audit(
    request: Request,
    resources: AppResources,
    since: Annotated[Moment | None, Query(description="From then on.")] = None,
    until: Annotated[Moment | None, Query(description="Before then.")] = None,
    gallery: Annotated[GalleryName | None, Query()] = None,
    cursor: Annotated[
        int, Query(ge=0, le=2**63 - 1, description="The `number` of the last line you have.")
    ] = 0,
) -> StreamingResponse:
    """Give the record of who did what, as it is now; reading it is recorded, too."""
    await record_answer(request, Entry("read_audit", gallery))
    lines = resources.audit.lines(after=cursor, since=since, until=until, gallery=gallery)
    return StreamingResponse(_encoded(lines), media_type=MEDIA_TYPE)


def _encoded(lines: Iterator[dict[str, object]]) -> Iterator[str]:
    # Many at a time, because each piece that is sent costs a change of threads.
    while piece := list(islice(lines, _PIECE)):
        # In ASCII, because many readers end lines at other characters than a newline as well.
        yield "".join(json.dumps(line) + "\n" for line in piece)

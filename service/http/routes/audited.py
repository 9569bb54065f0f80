"""How routes add to the audit record, and the record itself as an answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.access.audit.entries import Actor, Entry
from service.access.keys import Scope
from service.foundation.errors import Reason, StorageFull
from service.gallery.editing import Also, Corrected, Record
from service.gallery.fields import GalleryName, Moment
from service.gallery.records import ErasureReceipt
from service.http import recorded
from service.http.middleware.access import CALLER
from service.http.middleware.audit import RECORDED
from service.http.routes.access import requires
from service.http.routes.dependencies import Held, resources
from service.http.schemas import AuditLine
from service.privacy.corrections import Correct
from service.storage.database import storage_trouble

_log = logging.getLogger(__name__)


class ErasureUnrecorded(StorageFull):
    """An erasure that was made, but could not be recorded: not to be tried again, as a 503 is."""

    slug, title = "erasure-unrecorded", "Erased, but not recorded"


router = APIRouter(prefix="/audit", tags=["audit"], dependencies=[Depends(requires(Scope.ADMIN))])
MEDIA_TYPE = "application/x-ndjson"
_PIECE = 500  # lines


async def record_answer(request: Request, entry: Entry) -> None:
    """Record something that was read, before it is sent."""
    await resources(request).audit.answered(entry, _caller(request))
    request.scope[RECORDED] = True


def record_change(request: Request, entry: Entry) -> None:
    """Record a change, for the transaction that makes it."""
    resources(request).audit.changed(entry, _caller(request))
    request.scope[RECORDED] = True


def record_read(request: Request, entry: Entry) -> None:
    """The same as `record_answer`, for routes that run in a thread."""
    resources(request).audit.read(entry, _caller(request))


async def record_erasure(
    request: Request, what: Literal["subject", "sequence", "gallery"], receipt: ErasureReceipt
) -> None:
    """Forget whom it erased, and record an erasure that was committed; from a full disk, too.

    Raises `ErasureUnrecorded`.
    """
    audit, reserve = resources(request).audit, resources(request).reserve

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


async def correct(
    request: Request,
    correction: Correct[Record],
    entries: Callable[[Corrected[Record]], Iterable[Entry]],
    also: Also = lambda _session, _corrected: None,
) -> Corrected[Record]:
    """Carry out a correction, recorded in its transaction, in which `also` runs as well.

    A subject's id that is not enrolled any more is taken out of the record, as in an erasure.
    """
    held = resources(request)

    def record(session: Session, corrected: Corrected[Record]) -> None:
        also(session, corrected)
        for entry in entries(corrected):
            record_change(request, entry)

    corrected = await held.corrections.make(correction, record)
    handover = corrected.handover
    if handover is not None and handover.subject_gone:
        try:
            await asyncio.to_thread(held.audit.forget, corrected.gallery, handover.subject_id)
        except (OSError, SQLAlchemyError):  # it is committed; the next tidying forgets
            _log.exception("a former id is left in the audit record for a while")
    return corrected


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
    held: Held,
    since: Annotated[Moment | None, Query(description="From then on.")] = None,
    until: Annotated[Moment | None, Query(description="Before then.")] = None,
    gallery: Annotated[GalleryName | None, Query()] = None,
    cursor: Annotated[
        int, Query(ge=0, le=2**63 - 1, description="The `number` of the last line you have.")
    ] = 0,
) -> StreamingResponse:
    """Give the record of who did what, as it is now; reading it is recorded, too."""
    await record_answer(request, Entry("read_audit", gallery))
    lines = held.audit.lines(after=cursor, since=since, until=until, gallery=gallery)
    return StreamingResponse(_encoded(lines), media_type=MEDIA_TYPE)


def _encoded(lines: Iterator[dict[str, object]]) -> Iterator[str]:
    # Many at a time, because each piece that is sent costs a change of threads.
    while piece := list(islice(lines, _PIECE)):
        # In ASCII, because many readers end lines at other characters than a newline as well.
        yield "".join(json.dumps(line) + "\n" for line in piece)

"""Functions with which routes add to the audit record, and GET /audit."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.access.audit.entries import Actor, Entry
from service.access.keys import Scope
from service.foundation.errors import Reason, StorageFull, Unavailable
from service.gallery.editing import Corrected, Record
from service.gallery.fields import GalleryName, Moment
from service.gallery.records import ErasureReceipt
from service.http import recorded
from service.http.middleware.access import CALLER
from service.http.middleware.audit import RECORDED
from service.http.middleware.idempotency import KEPT, KEY_LOCK
from service.http.middleware.scopes import requires
from service.http.routes.dependencies import AppResources, resources_of
from service.http.schemas import AuditLine, Schema
from service.privacy.corrections import Correct
from service.storage.database import in_pieces
from service.storage.failures import storage_trouble
from service.storage.kept_answers import Answer, keep


class ErasureUnrecorded(StorageFull):
    """An erasure was made and could not be recorded; unlike a 503, it is not to be sent again."""

    slug, title = "erasure-unrecorded", "Erased, but not recorded"


router = APIRouter(prefix="/audit", tags=["audit"], dependencies=[Depends(requires(Scope.ADMIN))])
MEDIA_TYPE = "application/x-ndjson"
_PIECE = 500  # lines
_RECORDED_WITHIN_S = 10.0  # that an erasure waits for the database that is to record it
_PAUSE_S = 0.3
_log = logging.getLogger(__name__)


async def record_answer(request: Request, entry: Entry) -> None:
    """Record something that was read, before it is sent."""
    await resources_of(request).audit.answered(entry, _caller(request))
    request.scope[RECORDED] = True


def record_change(request: Request, entry: Entry) -> None:
    """Record a change, within its transaction."""
    resources_of(request).audit.changed(entry, _caller(request))
    request.scope[RECORDED] = True


def keep_change(
    session: Session,
    request: Request,
    entry: Entry,
    answer: Schema,
    status: int,
    location: str | None = None,
) -> None:
    """Record a change and keep its answer for the Idempotency-Key, in the change's transaction."""
    headers = {"content-type": "application/json"}
    if location is not None:
        headers["location"] = location
    record_change(request, entry)
    keep(session, request.scope.get(KEY_LOCK), Answer(status, headers, answer.model_dump_json()))
    request.scope[KEPT] = True


def record_read(request: Request, entry: Entry) -> None:
    """Record something that was read, before it is sent, from a route that runs in a thread."""
    resources_of(request).audit.read(entry, _caller(request))


async def record_erasure(
    request: Request, what: Literal["subject", "sequence", "gallery"], receipt: ErasureReceipt
) -> None:
    """Record an erasure that was committed, and forget its subjects; works on a full disk, too.

    Waits some seconds for a database that is away. Raises `ErasureUnrecorded`.
    """
    audit, reserve = resources_of(request).audit, resources_of(request).reserve

    def forget_and_record() -> None:
        if what == "gallery":
            audit.forget(receipt.gallery)
        elif receipt.subjects and receipt.subject_id is not None:
            audit.forget(receipt.gallery, receipt.subject_id)
        audit.changed(recorded.erasure(what, receipt), _caller(request))

    deadline = time.monotonic() + _RECORDED_WITHIN_S
    while not await _recorded(partial(reserve.spend, forget_and_record), receipt, deadline):
        await asyncio.sleep(_PAUSE_S)
    request.scope[RECORDED] = True


async def _recorded(record: Callable[[], None], receipt: ErasureReceipt, deadline: float) -> bool:
    """Whether it could be recorded; not because of what may pass before the deadline, if False."""
    try:
        await asyncio.to_thread(record)
    except (OSError, SQLAlchemyError) as error:
        trouble = storage_trouble(error)
        if trouble is None:
            raise
        if isinstance(trouble, Unavailable) and time.monotonic() < deadline:
            return False
        raise ErasureUnrecorded(
            f"Erased for good, with {len(receipt.sequence_ids)} sequences, but the audit record "
            f"could not be written to say so: note the receipt {receipt.receipt_id}, free space "
            "where the service keeps its data, and do not send the request again.",
            Reason("audit", "not_recorded"),
        ) from error
    return True


async def correct(
    request: Request,
    correction: Correct[Record],
    entries: Callable[[Corrected[Record]], Iterable[Entry]],
) -> Corrected[Record]:
    """Carry out a correction, recorded in its transaction.

    A subject's id that is not enrolled any more is removed from the record, as in an erasure.
    """
    resources = resources_of(request)

    def record(_session: Session, corrected: Corrected[Record]) -> None:
        for entry in entries(corrected):
            record_change(request, entry)

    corrected = await resources.corrections.make(correction, record)
    handover = corrected.handover
    if handover is not None and handover.subject_gone:
        try:
            await asyncio.to_thread(resources.audit.forget, corrected.gallery, handover.subject_id)
        except (OSError, SQLAlchemyError):  # it is committed; the next tidying forgets
            _log.exception("after a correction the audit record still names who is not enrolled")
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
    resources: AppResources,
    since: Annotated[Moment | None, Query(description="From then on.")] = None,
    until: Annotated[Moment | None, Query(description="Before then.")] = None,
    gallery: Annotated[GalleryName | None, Query()] = None,
    cursor: Annotated[
        int, Query(ge=0, le=2**63 - 1, description="The `number` of the last line you have.")
    ] = 0,
) -> StreamingResponse:
    """Return the record of who did what, as it is now; reading it is recorded, too."""
    await record_answer(request, Entry("read_audit", gallery))
    lines = resources.audit.lines(after=cursor, since=since, until=until, gallery=gallery)
    return StreamingResponse(_encoded(lines), media_type=MEDIA_TYPE)


def _encoded(lines: Iterator[dict[str, object]]) -> Iterator[str]:
    # Many at a time, because each piece that is sent costs a change of threads.
    for piece in in_pieces(lines, _PIECE):
        # In ASCII, because many readers end lines at other characters than a newline as well.
        yield "".join(json.dumps(line) + "\n" for line in piece)

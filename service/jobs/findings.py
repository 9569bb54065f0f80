"""The findings of audits name people; an erasure takes those who are erased out of them.

Only a gallery's newest audit keeps its lists, so there is one to look through: the job whose
`findings_of` is the gallery. They are in the job's result and in the event that ended it.

So is what footage jobs list of the walks in a clip, and in an event for each walk. A listing goes
when its `keep_minutes` have passed since the job ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from service.jobs.job import Job, JsonObject
from service.jobs.tables import JobEventRow, JobRow

FOOTAGE: Final = "footage"
"""The type of jobs that list the walks in a clip."""
WALK: Final = "walk"
"""The kind of an event that lists one."""
FORGOTTEN: Final = {"forgotten": True}
"""What is left of such an event when the walk may not be known any more."""
STATUS: Final = "status"

_LISTS: Final = ("nearer_to_another", "hubs", "pairs", "poor")


def forget_findings(
    session: Session, gallery: str, sequence_ids: Collection[str] | None = None
) -> list[str]:
    """Remove the entries that name these sequences, or all, from a gallery's audits and listings.

    Returns the ids of the found walks that are listed no more.
    """
    unlisted: list[str] = []
    for row in _naming(session, gallery):
        if row.type == FOOTAGE:
            unlisted += _forget_listed(session, row, sequence_ids)
        else:
            _forget_audit(session, row, sequence_ids)
    return unlisted


def note_findings(session: Session, gallery: str, job_id: str) -> None:
    """Make a gallery's audit the one that may name people, in the transaction that ends the job."""
    for row in _naming(session, gallery):  # earlier audits
        if row.type != FOOTAGE:
            _forget_audit(session, row, None)
    session.get_one(JobRow, job_id).findings_of = gallery


def note_listing(session: Session, gallery: str, job_id: str) -> None:
    """Have erasures find what a footage job will list, in the transaction that queues it."""
    session.get_one(JobRow, job_id).findings_of = gallery


def listed(session: Session, job_id: str) -> list[JsonObject]:
    """The walks that a footage job lists, in the order in which they ended."""
    return [event.data for event in _walk_events(session, job_id) if event.data != FORGOTTEN]


def count_listed(session: Session, job_id: str) -> int:
    """How many walks a footage job has ever listed, also those that were forgotten."""
    counted = select(func.count()).select_from(JobEventRow)
    return session.scalar(counted.where(*_walks_of(job_id))) or 0


def kept_until(job: JobRow | Job) -> datetime | None:
    """When a footage job's listing goes; None while it has not ended."""
    if job.finished_at is None:
        return None
    return job.finished_at + timedelta(minutes=job.request["keep_minutes"])


def forget_expired(session: Session, at: datetime) -> list[str]:
    """Forget the listings whose time is over; returns the ids of their jobs."""
    query = select(JobRow).where(
        JobRow.findings_of.is_not(None), JobRow.type == FOOTAGE, JobRow.finished_at.is_not(None)
    )
    query = query.order_by(JobRow.id).with_for_update()  # an erasure may be at them, too
    over = []
    for row in session.scalars(query).all():
        end = kept_until(row)
        if end is not None and end <= at:
            _forget_listed(session, row, None)
            over.append(row.id)
    return over


def _naming(session: Session, gallery: str) -> Sequence[JobRow]:
    """The jobs that may name people of a gallery."""
    named = select(JobRow).where(JobRow.findings_of == gallery)
    return session.scalars(named.order_by(JobRow.id).with_for_update()).all()


def _forget_audit(session: Session, row: JobRow, sequence_ids: Collection[str] | None) -> None:
    if row.result is not None and any(row.result[name] for name in _LISTS):
        row.result = without(row.result, sequence_ids)
        for event in session.scalars(select(JobEventRow).where(JobEventRow.job_id == row.id)):
            if event.data.get("result"):
                result = without(event.data["result"], sequence_ids)
                event.data = {**event.data, "result": result}
    if row.result is None or not any(row.result[name] for name in _LISTS):
        row.findings_of = None  # it names nobody


def _forget_listed(
    session: Session, row: JobRow, sequence_ids: Collection[str] | None
) -> list[str]:
    """Remove from a listing whoever is named; returns the ids of the walks that went whole."""
    gone = []
    for event in _walk_events(session, row.id):
        if event.data == FORGOTTEN:
            continue
        kept = _unnamed(event.data, sequence_ids)
        if kept is None:
            gone.append(event.data["walk"])
        if kept != event.data:
            event.data = dict(FORGOTTEN) if kept is None else kept
    if row.result is not None:
        row.result = {**row.result, "walks": listed(session, row.id)}
        final = select(JobEventRow).where(JobEventRow.job_id == row.id, JobEventRow.kind == STATUS)
        for event in session.scalars(final):
            if event.data.get("result"):
                event.data = {**event.data, "result": row.result}
    if row.finished_at is not None and sequence_ids is None:
        row.findings_of = None  # it names nobody, and will not
    return gone


def _unnamed(walk: JsonObject, sequence_ids: Collection[str] | None) -> JsonObject | None:
    """A listed walk without candidates of these sequences; None if it was taken for one of them."""
    candidates = walk["candidates"]
    if sequence_ids is None:
        return None
    if walk["decision"] == "match" and candidates[0]["sequence_id"] in sequence_ids:
        return None
    left = [one for one in candidates if one["sequence_id"] not in sequence_ids]
    if len(left) == len(candidates):
        return walk
    ranked = [{**one, "rank": rank} for rank, one in enumerate(left, 1)]
    return {**walk, "candidates": ranked}


def _walk_events(session: Session, job_id: str) -> Sequence[JobEventRow]:
    query = select(JobEventRow).where(*_walks_of(job_id)).order_by(JobEventRow.sequence)
    return session.scalars(query).all()


def _walks_of(job_id: str) -> tuple[ColumnElement[bool], ...]:
    return JobEventRow.job_id == job_id, JobEventRow.kind == WALK


def named_in(result: JsonObject) -> set[tuple[str, str]]:
    """Every sequence that the lists of an audit's result name, and whose it is said to be."""
    return {one for name in _LISTS for one in _ids(result[name])}


def without(result: JsonObject, sequence_ids: Collection[str] | None) -> JsonObject:
    """A result without the entries that name these sequences, or without any."""
    kept = {
        name: []
        if sequence_ids is None
        else [
            entry
            for entry in result[name]
            if not any(sequence_id in sequence_ids for sequence_id, _ in _ids(entry))
        ]
        for name in _LISTS
    }
    return {**result, **kept}


def _ids(value: Any) -> Iterator[tuple[str, str]]:
    """Every sequence id in an entry, at any depth, with its subject's."""
    match value:
        case {"sequence_id": str(sequence_id), "subject_id": str(subject_id), **rest}:
            yield sequence_id, subject_id
            yield from _ids(rest)
        case dict():
            yield from _ids(list(value.values()))
        case list() | tuple():
            for item in value:
                yield from _ids(item)

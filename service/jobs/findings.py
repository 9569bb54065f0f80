"""The findings of audits name people; an erasure takes those who are erased out of them.

Only a gallery's newest audit keeps its lists, so there is one to look through: the job whose
`findings_of` is the gallery. They are in the job's result and in the event that ended it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.jobs.job import JsonObject
from service.jobs.tables import JobEventRow, JobRow

_LISTS: Final = ("nearer_to_another", "hubs", "pairs", "poor")


def forget_findings(
    session: Session, gallery: str, sequence_ids: Collection[str] | None = None
) -> None:
    """Remove the entries that name these sequences, or all, from a gallery's audits."""
    for row in session.scalars(select(JobRow).where(JobRow.findings_of == gallery)).all():
        if row.result is not None and any(row.result[name] for name in _LISTS):
            row.result = without(row.result, sequence_ids)
            events = select(JobEventRow).where(JobEventRow.job_id == row.id)
            for event in session.scalars(events):
                if event.data.get("result"):
                    result = without(event.data["result"], sequence_ids)
                    event.data = {**event.data, "result": result}
        if row.result is None or not any(row.result[name] for name in _LISTS):
            row.findings_of = None  # it names nobody


def note_findings(session: Session, gallery: str, job_id: str) -> None:
    """Make a gallery's audit the one that may name people, in the transaction that ends the job."""
    forget_findings(session, gallery)  # of earlier audits
    session.get_one(JobRow, job_id).findings_of = gallery


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

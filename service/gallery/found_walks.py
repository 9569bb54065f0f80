"""Walks that jobs found in footage: sealed as enrolled ones are, until they are enrolled or go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass

from sqlalchemy import Engine, delete
from sqlalchemy.orm import InstrumentedAttribute, Session

from models.footage.upload import Origin
from models.silhouettes.types import Quality
from service.foundation.errors import NotFound, Reason
from service.gallery.records import Silhouettes
from service.gallery.sealing import sealing_of
from service.gallery.shredding import mark_ended
from service.gallery.tables import FoundWalkRow
from service.storage.database import in_pieces, now
from service.storage.vacuum import mark_for_vacuum


@dataclass(frozen=True, slots=True)
class FoundWalk:
    """A walk that a job found, ready to be embedded.

    Attributes:
        walk_id: what a request for its enrolment names.
        job_id: the job.
        silhouettes: uint8 [s, 64, 64].
        quality: the judgement on it.
        origin: where in the clip it is.
    """

    walk_id: str
    job_id: str
    silhouettes: Silhouettes
    quality: Quality
    origin: Origin


def sealed(engine: Engine, walk: FoundWalk) -> FoundWalkRow:
    """The row that keeps a walk; making it takes too long for a lock."""
    sealing = sealing_of(engine)
    sealing.begin([walk.walk_id])
    return FoundWalkRow(
        id=walk.walk_id,
        job_id=walk.job_id,
        silhouettes=sealing.seal_silhouettes(walk.walk_id, walk.silhouettes),
        key_id=sealing.walks_key_id,
        quality=asdict(walk.quality),
        origin=asdict(walk.origin),
        created_at=now(),
    )


def read(engine: Engine, walk_id: str) -> FoundWalk:
    """A walk that is still kept; raises `NotFound`, and what `Sealing.silhouettes` raises."""
    with Session(engine) as session:
        # PostgreSQL refuses to compare with a NUL.
        row = None if "\0" in walk_id else session.get(FoundWalkRow, walk_id)
    if row is None:
        raise missing_walk(walk_id)
    quality = {**row.quality, "issues": tuple(row.quality["issues"])}
    silhouettes = sealing_of(engine).silhouettes(row.id, row.silhouettes, row.key_id)
    return FoundWalk(row.id, row.job_id, silhouettes, Quality(**quality), Origin(**row.origin))


def take(session: Session, walk_id: str) -> None:
    """Remove a walk in the transaction that enrols it; raises `NotFound` if another one did."""
    row = session.get(FoundWalkRow, walk_id, with_for_update=True)
    if row is None:
        raise missing_walk(walk_id)
    mark_ended(session, FoundWalkRow, FoundWalkRow.id == walk_id)
    session.delete(row)


def remove(session: Session, walk_ids: Collection[str]) -> None:
    """Remove walks, by id."""
    _remove(session, FoundWalkRow.id, walk_ids)


def remove_of_jobs(session: Session, job_ids: Collection[str]) -> None:
    """Remove every walk of these jobs."""
    _remove(session, FoundWalkRow.job_id, job_ids)


def _remove(session: Session, column: InstrumentedAttribute[str], ids: Collection[str]) -> None:
    if not ids:
        return
    for some in map(column.in_, in_pieces(ids)):
        mark_ended(session, FoundWalkRow, some)
        session.execute(delete(FoundWalkRow).where(some))
    mark_for_vacuum(session.connection())


def missing_walk(walk_id: str) -> NotFound:
    """The error for a walk that is not there."""
    return NotFound(
        f"There is no found walk {walk_id!r}: it was enrolled, or its job's `keep_minutes` passed.",
        Reason("walk", "not_found"),
        slug="walk-not-found",
    )

"""Galleries, subjects and a subject's sequences, a page at a time.

Pages are cut by key, not by offset, so nothing is skipped or shown twice while others enrol.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from sqlalchemy import Engine, and_, bindparam, func, select
from sqlalchemy.orm import Session

from service.foundation.errors import NotFound, Reason
from service.gallery.coverage import Coverage, coverage, labels_in_use
from service.gallery.records import Description, GalleryRecord, SequenceRecord, SubjectRecord
from service.gallery.store import (
    fitted_scenes,
    gallery_record,
    missing_gallery,
    sequence_record,
    subject_record,
)
from service.gallery.tables import GalleryRow, SequenceRow, SubjectRow
from service.storage.database import Page

Record = TypeVar("Record")


def galleries(engine: Engine, *, limit: int, after: str | None) -> Page[GalleryRecord]:
    """Galleries by name."""
    counts = (
        select(func.count())
        .where(table.gallery_id == GalleryRow.id)
        .correlate(GalleryRow)
        .scalar_subquery()
        for table in (SubjectRow, SequenceRow)
    )
    query = select(GalleryRow, *counts).order_by(GalleryRow.name).limit(limit + 1)
    if after is not None:
        query = query.where(GalleryRow.name > after)
    with Session(engine) as session:
        rows = session.execute(query).all()
        scenes = fitted_scenes(session, [row.id for row, _, _ in rows])
        records = [
            gallery_record(row, subjects, sequences, scenes[row.id])
            for row, subjects, sequences in rows
        ]
    return _page(records, limit, lambda record: record.name)


def subjects(engine: Engine, gallery: str, *, limit: int, after: str | None) -> Page[SubjectRecord]:
    """A gallery's subjects by id; raises `NotFound` for a missing gallery."""
    with Session(engine) as session:
        gallery_id = _require_gallery(session, gallery)
        count = (
            select(func.count())
            .where(
                SequenceRow.gallery_id == SubjectRow.gallery_id,
                SequenceRow.subject_id == SubjectRow.subject_id,
            )
            .correlate(SubjectRow)
            .scalar_subquery()
        )
        query = (
            select(SubjectRow, count)
            .where(SubjectRow.gallery_id == gallery_id)
            .order_by(SubjectRow.subject_id)
            .limit(limit + 1)
        )
        if after is not None:
            query = query.where(SubjectRow.subject_id > after)
        records = [
            subject_record(row, gallery, sequences) for row, sequences in session.execute(query)
        ]
    return _page(records, limit, lambda record: record.subject_id)


def _page(records: list[Record], limit: int, key: Callable[[Record], str]) -> Page[Record]:
    """A page of `limit` records; one more record says that there is another page."""
    more = len(records) > limit
    return Page(tuple(records[:limit]), key(records[limit - 1]) if more else None)


def _require_gallery(session: Session, name: str) -> str:
    gallery_id = session.scalar(select(GalleryRow.id).where(GalleryRow.name == name))
    if gallery_id is None:
        raise missing_gallery(name)
    return gallery_id


def subject(
    engine: Engine, gallery: str, subject_id: str
) -> tuple[SubjectRecord, tuple[SequenceRecord, ...], Coverage]:
    """A subject, its sequences, oldest first, and what they cover; raises `NotFound`."""
    with Session(engine) as session:
        gallery_id = _require_gallery(session, gallery)
        row = session.get(SubjectRow, (gallery_id, subject_id))
        if row is None:
            raise missing_subject(gallery, subject_id)
        sequences = tuple(
            sequence_record(sequence, gallery)
            for sequence in session.scalars(
                select(SequenceRow)
                .where(SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id == subject_id)
                .order_by(SequenceRow.id)
            )
        )
        return (
            subject_record(row, gallery, len(sequences)),
            sequences,
            coverage(
                session,
                gallery_id,
                subject_id,
                labels_in_use(session, gallery_id, subject_id),
            ),
        )


def descriptions(engine: Engine, sequence_ids: Collection[str]) -> dict[str, Description]:
    """What is said of each of these sequences that is enrolled, and of its subject, by its id."""
    query = (
        select(SequenceRow.id, SequenceRow.details, SubjectRow)
        .join(
            SubjectRow,
            and_(
                SubjectRow.gallery_id == SequenceRow.gallery_id,
                SubjectRow.subject_id == SequenceRow.subject_id,
            ),
        )
        .where(SequenceRow.id.in_(sequence_ids))
    )
    with Session(engine) as session:
        return {
            sequence_id: Description(
                subject_id=subject.subject_id,
                display_name=subject.display_name,
                metadata={**details, **(subject.details or {})},
            )
            for sequence_id, details, subject in session.execute(query)
        }


def require_subject(engine: Engine, gallery: str, subject_id: str) -> None:
    """Raise `NotFound` unless the subject is enrolled."""
    if not is_enrolled(engine, gallery, subject_id):
        raise missing_subject(gallery, subject_id)


_ENROLLED = (  # read at every search
    select(SubjectRow.subject_id)
    .join(GalleryRow, GalleryRow.id == SubjectRow.gallery_id)
    .where(GalleryRow.name == bindparam("gallery"), SubjectRow.subject_id == bindparam("subject"))
)


def is_enrolled(engine: Engine, gallery: str, subject_id: str) -> bool:
    """Whether there is such a subject in such a gallery."""
    named = {"gallery": gallery, "subject": subject_id}
    with engine.connect() as connection:
        return connection.execute(_ENROLLED, named).first() is not None


def all_enrolled(session: Session, sequence_ids: Collection[str]) -> bool:
    """Whether all of these sequences are there, and stay so until the transaction ends.

    For one that writes: an erasure of one of them waits for it, or is waited for.
    """
    query = (
        select(SequenceRow.id)
        .where(SequenceRow.id.in_(sequence_ids))
        .order_by(SequenceRow.id)  # so that two of them never wait for each other
        .with_for_update(read=True, key_share=True)
    )
    return len(session.scalars(query).all()) == len(set(sequence_ids))


def missing_subject(gallery: str, subject_id: str) -> NotFound:
    """The error for a subject who is not enrolled."""
    return NotFound(
        f"No subject {subject_id!r} is enrolled in the gallery {gallery!r}. "
        "GET /subjects lists who is.",
        Reason("subject_id", "not_found"),
        slug="subject-not-found",
    )

"""Erase a subject, a sequence or a gallery in one transaction, and say what went.

SQLite overwrites what it deletes (`secure_delete`); the write-ahead log still holds older pages,
so it is emptied into the database afterwards, and the next sweep rewrites the file. Answers kept
for idempotency keys may name a subject or a sequence, so those that do go too, and jobs that work
on copies of the gallery's walks are cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Engine, delete, func, select
from sqlalchemy.orm import Session

from service.gallery.editing import mark_gone
from service.gallery.listing import missing_subject
from service.gallery.records import ErasureReceipt
from service.gallery.store import missing_gallery, missing_sequence, raise_revision
from service.gallery.tables import (
    EmbeddingRow,
    GalleryRow,
    SequenceRow,
    SubjectRow,
)
from service.jobs.findings import forget_findings
from service.jobs.queue import cancel_those_that_hold
from service.storage.database import empty_log, new_id, note_erasure, now, writing
from service.storage.kept_answers import forget_answers_about, forget_answers_at

ModelsOf = Callable[[Session, str, Sequence[str]], tuple[str, ...]]
"""The names of the models that learned from any of these subjects of a gallery."""


def _none_known(_session: Session, _gallery: str, _subject_ids: Sequence[str]) -> tuple[str, ...]:
    return ()


def erase_subject(
    engine: Engine, gallery: str, subject_id: str, models_of: ModelsOf = _none_known
) -> ErasureReceipt:
    """Erase a subject with every sequence; raises `NotFound`."""
    with Session(writing(engine)) as session, session.begin():
        gallery_id, revision = raise_revision(session, gallery)
        if session.get(SubjectRow, (gallery_id, subject_id)) is None:
            raise missing_subject(gallery, subject_id)
        sequence_ids = tuple(
            session.scalars(
                select(SequenceRow.id)
                .where(SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id == subject_id)
                .order_by(SequenceRow.id)
            )
        )
        embeddings = _erase_sequences(session, gallery_id, revision, sequence_ids)
        forget_findings(session, gallery, sequence_ids)
        _delete_subjects(session, gallery_id, [subject_id])
        jobs = cancel_those_that_hold(session, gallery)
        models = models_of(session, gallery, [subject_id])
    empty_log(engine)
    return _receipt(gallery, subject_id, 1, sequence_ids, embeddings, models, jobs)


def erase_sequence(
    engine: Engine, sequence_id: str, models_of: ModelsOf = _none_known
) -> ErasureReceipt:
    """Erase a sequence, and its subject when it was the last one; raises `NotFound`."""
    with Session(writing(engine)) as session, session.begin():
        where = session.execute(
            select(GalleryRow.name, SequenceRow.subject_id)
            .join(SequenceRow, SequenceRow.gallery_id == GalleryRow.id)
            .where(SequenceRow.id == sequence_id)
        ).one_or_none()
        if where is None:
            raise missing_sequence(sequence_id)
        gallery, subject_id = where
        gallery_id, revision = raise_revision(session, gallery)
        if session.get(SequenceRow, sequence_id) is None:  # erased while we waited for our turn
            raise missing_sequence(sequence_id)
        embeddings = _erase_sequences(session, gallery_id, revision, (sequence_id,))
        forget_findings(session, gallery, (sequence_id,))
        vanished = _without_sequences(session, gallery_id, [subject_id])
        _delete_subjects(session, gallery_id, vanished)
        jobs = cancel_those_that_hold(session, gallery)
        models = models_of(session, gallery, [subject_id])
    empty_log(engine)
    return _receipt(gallery, subject_id, len(vanished), (sequence_id,), embeddings, models, jobs)


def erase_gallery(
    engine: Engine, gallery: str, *, keep: bool, models_of: ModelsOf = _none_known
) -> ErasureReceipt:
    """Erase a gallery with everything in it.

    With `keep` an empty one of that name remains, which keeps what it gets for as long.
    """
    with Session(writing(engine)) as session, session.begin():
        row = session.scalar(select(GalleryRow).where(GalleryRow.name == gallery).with_for_update())
        if row is None:
            raise missing_gallery(gallery)
        subject_ids = list(
            session.scalars(select(SubjectRow.subject_id).where(SubjectRow.gallery_id == row.id))
        )
        sequence_ids = tuple(
            session.scalars(
                select(SequenceRow.id)
                .where(SequenceRow.gallery_id == row.id)
                .order_by(SequenceRow.id)
            )
        )
        embeddings = _count_embeddings(session, SequenceRow.gallery_id == row.id)
        forget_findings(session, gallery)
        max_age_days = row.max_age_days
        session.execute(delete(GalleryRow).where(GalleryRow.id == row.id))
        forget_answers_about(session, [*subject_ids, *sequence_ids])
        forget_answers_at(session, f"/galleries/{gallery}")
        note_erasure(session.connection())
        if keep:
            session.add(
                GalleryRow(
                    id=new_id(),
                    name=gallery,
                    revision=0,
                    details={},
                    operating_point=None,
                    max_age_days=max_age_days,
                    created_at=now(),
                )
            )
        jobs = cancel_those_that_hold(session, gallery)
        models = models_of(session, gallery, subject_ids)
    empty_log(engine)
    return _receipt(gallery, None, len(subject_ids), sequence_ids, embeddings, models, jobs)


def erase_older(engine: Engine, gallery_id: str, at: datetime, most: int) -> tuple[int, int]:
    """Erase up to `most` sequences that were enrolled before the gallery's maximum age.

    Returns how many sequences and subjects went; nothing when the gallery has no such age, is gone,
    or has nothing so old. Jobs that work on a copy of the walks go on, because they end by
    themselves and a gallery that loses its oldest every hour would never see one finish. The
    write-ahead log is left for the caller to empty.
    """
    with Session(writing(engine)) as session, session.begin():
        gallery = session.get(GalleryRow, gallery_id, with_for_update=True)
        if gallery is None or gallery.max_age_days is None:
            return 0, 0
        rows = session.execute(
            select(SequenceRow.id, SequenceRow.subject_id)
            .where(
                SequenceRow.gallery_id == gallery_id,
                SequenceRow.created_at < at - timedelta(days=gallery.max_age_days),
            )
            .order_by(SequenceRow.created_at)
            .limit(most)
        ).all()
        if not rows:
            return 0, 0
        _, revision = raise_revision(session, gallery.name)
        sequence_ids = tuple(row.id for row in rows)
        _erase_sequences(session, gallery_id, revision, sequence_ids)
        forget_findings(session, gallery.name, sequence_ids)
        vanished = _without_sequences(session, gallery_id, {row.subject_id for row in rows})
        _delete_subjects(session, gallery_id, vanished)
        return len(rows), len(vanished)


def _erase_sequences(
    session: Session, gallery_id: str, revision: int, sequence_ids: tuple[str, ...]
) -> int:
    embeddings = sum(
        _count_embeddings(session, SequenceRow.id == sequence_id) for sequence_id in sequence_ids
    )
    for sequence_id in sequence_ids:
        session.execute(delete(SequenceRow).where(SequenceRow.id == sequence_id))
    mark_gone(session, gallery_id, revision, sequence_ids)
    forget_answers_about(session, sequence_ids)
    note_erasure(session.connection())
    return embeddings


def _count_embeddings(session: Session, of: ColumnElement[bool]) -> int:
    query = (
        select(func.count())
        .select_from(EmbeddingRow)
        .join(SequenceRow, SequenceRow.id == EmbeddingRow.sequence_id)
        .where(of)
    )
    return session.scalar(query) or 0


def _without_sequences(
    session: Session, gallery_id: str, subject_ids: Collection[str]
) -> Sequence[str]:
    left = (
        select(SequenceRow.subject_id)
        .where(SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id.in_(subject_ids))
        .distinct()
    )
    return sorted(set(subject_ids) - set(session.scalars(left)))


def _delete_subjects(session: Session, gallery_id: str, subject_ids: Sequence[str]) -> None:
    if subject_ids:
        forget_answers_about(session, subject_ids)
        session.execute(
            delete(SubjectRow).where(
                SubjectRow.gallery_id == gallery_id, SubjectRow.subject_id.in_(subject_ids)
            )
        )


def _receipt(
    gallery: str,
    subject_id: str | None,
    subjects: int,
    sequence_ids: tuple[str, ...],
    embeddings: int,
    models: tuple[str, ...],
    jobs: tuple[str, ...],
) -> ErasureReceipt:
    return ErasureReceipt(
        receipt_id=new_id(),
        gallery=gallery,
        subject_id=subject_id,
        subjects=subjects,
        sequence_ids=sequence_ids,
        embeddings=embeddings,
        models=models,
        jobs=jobs,
        erased_at=now(),
    )

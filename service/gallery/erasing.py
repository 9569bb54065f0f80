"""Erase a subject, a sequence or a gallery in one transaction, and say what went.

SQLite overwrites what it deletes (`secure_delete`); the write-ahead log still holds older pages,
so it is emptied into the database afterwards. Answers kept for idempotency keys may name a
subject, so those that do go too.
"""

from __future__ import annotations

import logging
import sqlite3

from sqlalchemy import ColumnElement, Engine, delete, func, select
from sqlalchemy.orm import Session

from service.database import new_id, now, writing
from service.gallery.listing import missing_subject
from service.gallery.records import ErasureReceipt
from service.gallery.store import missing_gallery, missing_sequence, raise_revision
from service.gallery.tables import (
    EmbeddingRow,
    ErasedSequenceRow,
    GalleryRow,
    SequenceRow,
    SubjectRow,
)
from service.idempotency import forget_answers_about

_log = logging.getLogger(__name__)


def erase_subject(engine: Engine, gallery: str, subject_id: str) -> ErasureReceipt:
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
        _delete_subject(session, gallery_id, subject_id)
    _empty_log(engine)
    return _receipt(gallery, subject_id, 1, sequence_ids, embeddings)


def erase_sequence(engine: Engine, sequence_id: str) -> ErasureReceipt:
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
        # Else the walk, sent again with its key, would be said to be enrolled as what is gone.
        forget_answers_about(session, [sequence_id])
        left = session.scalar(
            select(func.count()).where(
                SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id == subject_id
            )
        )
        if not left:
            _delete_subject(session, gallery_id, subject_id)
    _empty_log(engine)
    return _receipt(gallery, subject_id, 0 if left else 1, (sequence_id,), embeddings)


def erase_gallery(engine: Engine, gallery: str, *, keep: bool) -> ErasureReceipt:
    """Erase a gallery with everything in it; with `keep` an empty one of that name remains."""
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
        forget_answers_about(session, subject_ids)
        session.execute(delete(GalleryRow).where(GalleryRow.id == row.id))
        if keep:
            session.add(
                GalleryRow(
                    id=new_id(),
                    name=gallery,
                    revision=0,
                    details={},
                    operating_point=None,
                    created_at=now(),
                )
            )
    _empty_log(engine)
    return _receipt(gallery, None, len(subject_ids), sequence_ids, embeddings)


def _erase_sequences(
    session: Session, gallery_id: str, revision: int, sequence_ids: tuple[str, ...]
) -> int:
    embeddings = sum(
        _count_embeddings(session, SequenceRow.id == sequence_id) for sequence_id in sequence_ids
    )
    for sequence_id in sequence_ids:
        session.execute(delete(SequenceRow).where(SequenceRow.id == sequence_id))
        session.add(
            ErasedSequenceRow(gallery_id=gallery_id, sequence_id=sequence_id, revision=revision)
        )
    return embeddings


def _count_embeddings(session: Session, of: ColumnElement[bool]) -> int:
    query = (
        select(func.count())
        .select_from(EmbeddingRow)
        .join(SequenceRow, SequenceRow.id == EmbeddingRow.sequence_id)
        .where(of)
    )
    return session.scalar(query) or 0


def _delete_subject(session: Session, gallery_id: str, subject_id: str) -> None:
    forget_answers_about(session, [subject_id])
    session.execute(
        delete(SubjectRow).where(
            SubjectRow.gallery_id == gallery_id, SubjectRow.subject_id == subject_id
        )
    )


def _empty_log(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        connection = engine.raw_connection()  # a checkpoint cannot run inside a transaction
        try:
            busy, _, _ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:  # no space left, say: the erasure is committed
            _log.error("the write-ahead log keeps what was erased: %s", error)
        else:
            if busy:
                _log.warning("the write-ahead log keeps what was erased until the next erasure")
        finally:
            connection.close()


def _receipt(
    gallery: str,
    subject_id: str | None,
    subjects: int,
    sequence_ids: tuple[str, ...],
    embeddings: int,
) -> ErasureReceipt:
    return ErasureReceipt(
        receipt_id=new_id(),
        gallery=gallery,
        subject_id=subject_id,
        subjects=subjects,
        sequence_ids=sequence_ids,
        embeddings=embeddings,
        erased_at=now(),
    )

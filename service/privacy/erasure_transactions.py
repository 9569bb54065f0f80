"""Erase a subject, a sequence or a gallery in one transaction, and say what went.

With its sequences go the kept answers, the findings of audits and the walks in footage that name
them, and the scene transform that they had a share in; jobs that work on copies of the gallery's
walks are cancelled. SQLite overwrites what it deletes (`secure_delete`); the write-ahead log still
holds older pages, so it is emptied into the database afterwards, and the next sweep rewrites the
file. PostgreSQL's tables are vacuumed afterwards. The receipt says whether that was done, and
whether the keys of the walks, where they have keys of their own, were ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Engine, Row, delete, func, select
from sqlalchemy.orm import Session

from service.gallery.editing import mark_gone
from service.gallery.listing import missing_subject
from service.gallery.records import ErasureReceipt
from service.gallery.scenes import drop
from service.gallery.sealing import sealing_of
from service.gallery.shredding import clear, end_strays, erased_before, mark_ended, unreadable
from service.gallery.store import missing_gallery, missing_sequence, raise_revision
from service.gallery.tables import (
    EmbeddingRow,
    GalleryRow,
    SequenceRow,
    SubjectRow,
)
from service.jobs.queue import cancel_jobs_using
from service.privacy.listings import forget_named
from service.serving import adaptation
from service.storage.database import new_id, now, writing
from service.storage.encryption import KeyTrouble
from service.storage.kept_answers import delete_answers_about
from service.storage.vacuum import mark_for_vacuum

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
        hers = (SequenceRow.gallery_id == gallery_id) & (SequenceRow.subject_id == subject_id)
        sequence_ids, embeddings = _erase_sequences(session, gallery_id, revision, hers)
        _delete_subjects(session, gallery_id, [subject_id])
        forget_named(session, gallery, sequence_ids)
        jobs = cancel_jobs_using(session, gallery)  # or they have ended, and made their models
        receipt = ErasureReceipt(
            receipt_id=new_id(),
            gallery=gallery,
            subject_id=subject_id,
            subjects=1,
            sequence_ids=sequence_ids,
            embeddings=embeddings,
            models=models_of(session, gallery, [subject_id]),
            jobs=jobs,
            scene_dropped=_drop_scene(session, gallery_id, gallery),
            erased_at=now(),
        )
    return _cleared(engine, receipt)


def erase_sequence(
    engine: Engine, sequence_id: str, models_of: ModelsOf = _none_known
) -> ErasureReceipt:
    """Erase a sequence, and its subject when it was the last one; raises `NotFound`."""
    with Session(writing(engine)) as session, session.begin():
        this = SequenceRow.id == sequence_id
        gallery = session.scalar(
            select(GalleryRow.name)
            .join(SequenceRow, SequenceRow.gallery_id == GalleryRow.id)
            .where(this)
        )
        if gallery is None:
            raise missing_sequence(sequence_id)
        gallery_id, revision = raise_revision(session, gallery)
        subject_id = session.scalar(select(SequenceRow.subject_id).where(this))
        if subject_id is None:  # erased while we waited for our turn
            raise missing_sequence(sequence_id)
        sequence_ids, embeddings = _erase_sequences(session, gallery_id, revision, this)
        vanished = _delete_subjects_without_sequences(session, gallery_id, {subject_id})
        forget_named(session, gallery, sequence_ids)
        jobs = cancel_jobs_using(session, gallery)  # or they have ended, and made their models
        receipt = ErasureReceipt(
            receipt_id=new_id(),
            gallery=gallery,
            subject_id=subject_id,
            subjects=vanished,
            sequence_ids=sequence_ids,
            embeddings=embeddings,
            models=models_of(session, gallery, [subject_id]),
            jobs=jobs,
            scene_dropped=_drop_scene(session, gallery_id, gallery),
            erased_at=now(),
        )
    return _cleared(engine, receipt)


def erase_gallery(
    engine: Engine, gallery: str, *, keep: bool, models_of: ModelsOf = _none_known
) -> ErasureReceipt:
    """Erase a gallery with everything in it; raises `NotFound`.

    With `keep` an empty gallery of that name remains, with the same maximum age.
    """
    with Session(writing(engine)) as session, session.begin():
        row = session.scalar(select(GalleryRow).where(GalleryRow.name == gallery).with_for_update())
        if row is None:
            raise missing_gallery(gallery)
        all_of_it = SequenceRow.gallery_id == row.id
        subjects = select(SubjectRow.subject_id).where(SubjectRow.gallery_id == row.id)
        subject_ids = list(session.scalars(subjects))
        sequence_ids = _sequence_ids(session, all_of_it)
        embeddings = _count_embeddings(session, all_of_it)
        max_age_days = row.max_age_days
        scene_dropped = drop(session, row.id)
        mark_ended(session, SequenceRow, all_of_it)
        session.execute(delete(GalleryRow).where(GalleryRow.id == row.id))
        delete_answers_about(session, [*subject_ids, *sequence_ids, f"/galleries/{gallery}"])
        forget_named(session, gallery)
        mark_for_vacuum(session.connection())
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
        jobs = cancel_jobs_using(session, gallery)
        receipt = ErasureReceipt(
            receipt_id=new_id(),
            gallery=gallery,
            subject_id=None,
            subjects=len(subject_ids),
            sequence_ids=sequence_ids,
            embeddings=embeddings,
            models=models_of(session, gallery, subject_ids),
            jobs=jobs,
            scene_dropped=scene_dropped,
            erased_at=now(),
        )
    return _cleared(engine, receipt)


def erase_older(engine: Engine, gallery_id: str, at: datetime, most: int) -> tuple[int, int]:
    """Erase up to `most` sequences that were enrolled before the gallery's maximum age.

    Returns how many sequences and subjects went: none when the gallery has no such age, is gone, or
    has nothing so old. Jobs that work on a copy of the walks go on: they end by themselves, and in
    a gallery that loses its oldest every hour none would ever finish. The caller empties the
    write-ahead log.
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
        vanished = _erase_rows(session, gallery, rows)
        return len(rows), vanished


def erase_restored(engine: Engine) -> int:
    """Erase again what was erased after the database was copied that this one was restored from.

    Those are the sequences whose keys ended; returns how many. Call it before anything is served.
    """
    return sum(_erase_by_id(engine, sequence_ids) for sequence_ids in erased_before(engine))


def reconcile(engine: Engine) -> tuple[int, int]:
    """Make a database and a store of walk keys fit that are of different moments.

    Erases sequences that have no key there, which nobody can read, and ends keys that have no
    walk; returns how many. Nobody may enrol meanwhile. Raises `KeyTrouble` without such a store.
    """
    walk_keys = sealing_of(engine).walk_keys
    if walk_keys is None:
        raise KeyTrouble("there is no store of walk keys; GAITID_WALK_KEYS_URL names one")
    erased = sum(_erase_by_id(engine, ids) for ids in unreadable(engine, walk_keys))
    strays = end_strays(engine, walk_keys)
    clear(engine)
    return erased, strays


def _erase_by_id(engine: Engine, sequence_ids: Collection[str]) -> int:
    """Erase these sequences of any galleries; returns how many there were."""
    count = 0
    these = SequenceRow.id.in_(list(sequence_ids))
    with Session(engine) as session:
        galleries = session.scalars(select(SequenceRow.gallery_id).where(these).distinct()).all()
    for gallery_id in galleries:
        with Session(writing(engine)) as session, session.begin():
            gallery = session.get(GalleryRow, gallery_id, with_for_update=True)
            if gallery is None:
                continue
            rows = session.execute(
                select(SequenceRow.id, SequenceRow.subject_id).where(
                    SequenceRow.gallery_id == gallery_id, these
                )
            ).all()
            if rows:
                _erase_rows(session, gallery, rows)
                count += len(rows)
    return count


def _erase_rows(session: Session, gallery: GalleryRow, rows: Sequence[Row[str, str]]) -> int:
    """Erase sequences of one gallery, by id and subject; returns how many subjects went."""
    _, revision = raise_revision(session, gallery.name)
    these = SequenceRow.id.in_([row.id for row in rows])
    sequence_ids, _ = _erase_sequences(session, gallery.id, revision, these)
    vanished = _delete_subjects_without_sequences(
        session, gallery.id, {row.subject_id for row in rows}
    )
    forget_named(session, gallery.name, sequence_ids)
    _drop_scene(session, gallery.id, gallery.name)
    return vanished


def _cleared(engine: Engine, receipt: ErasureReceipt) -> ErasureReceipt:
    """End the keys and clear the files; call it after the transaction."""
    keys, traces_cleared = clear(engine)
    return replace(receipt, keys=keys, traces_cleared=traces_cleared)


def _erase_sequences(
    session: Session, gallery_id: str, revision: int, which: ColumnElement[bool]
) -> tuple[tuple[str, ...], int]:
    """Returns the ids of the erased sequences and how many embeddings they had."""
    sequence_ids = _sequence_ids(session, which)
    embeddings = _count_embeddings(session, which)
    mark_ended(session, SequenceRow, which)
    session.execute(delete(SequenceRow).where(which))
    mark_gone(session, gallery_id, revision, sequence_ids)
    delete_answers_about(session, sequence_ids)
    mark_for_vacuum(session.connection())
    return sequence_ids, embeddings


def _drop_scene(session: Session, gallery_id: str, gallery: str) -> bool:
    """Forget what was fitted with those erased, and have it fitted without them.

    Returns whether there was anything. A fit that is under way begins again by itself.
    """
    dropped = drop(session, gallery_id)
    if dropped:
        adaptation.queue(session, gallery)
    return dropped


def _sequence_ids(session: Session, which: ColumnElement[bool]) -> tuple[str, ...]:
    return tuple(session.scalars(select(SequenceRow.id).where(which).order_by(SequenceRow.id)))


def _count_embeddings(session: Session, which: ColumnElement[bool]) -> int:
    query = (
        select(func.count())
        .select_from(EmbeddingRow)
        .join(SequenceRow, SequenceRow.id == EmbeddingRow.sequence_id)
        .where(which)
    )
    return session.scalar(query) or 0


def _delete_subjects_without_sequences(
    session: Session, gallery_id: str, subject_ids: Collection[str]
) -> int:
    """Of these subjects, delete those with no sequence left; returns how many."""
    left = (
        select(SequenceRow.subject_id)
        .where(SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id.in_(subject_ids))
        .distinct()
    )
    vanished = sorted(set(subject_ids) - set(session.scalars(left)))
    if vanished:
        _delete_subjects(session, gallery_id, vanished)
    return len(vanished)


def _delete_subjects(session: Session, gallery_id: str, subject_ids: Collection[str]) -> None:
    if not subject_ids:
        return
    delete_answers_about(session, subject_ids)
    session.execute(
        delete(SubjectRow).where(
            SubjectRow.gallery_id == gallery_id, SubjectRow.subject_id.in_(subject_ids)
        )
    )

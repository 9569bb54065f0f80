"""Correct what is enrolled: a walk's metadata, whose it is, what a person is called.

Each correction is one transaction that raises the gallery's revision. A sequence that it touches is
marked as gone at that revision and as come again, so every index drops what it knew of the sequence
and reads it anew, an export that has begun is cut off, and an enrolment that was compared with it
is compared again.

Kept answers that name a sequence or a subject of the correction are forgotten with it: they would
go on saying what was corrected, and an erasure that knows only the new id would not find the old.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Generic, TypeVar

from sqlalchemy import Engine, and_, delete, func, insert, select, update
from sqlalchemy.orm import Session

from service.foundation.errors import Conflict, NotFound, Reason
from service.gallery.coverage import label
from service.gallery.listing import missing_subject
from service.gallery.records import Metadata, SequenceRecord, SubjectRecord
from service.gallery.shredding import clear, mark_ended
from service.gallery.store import missing_sequence, raise_revision, sequence_record, subject_record
from service.gallery.tables import ErasedSequenceRow, GalleryRow, SequenceRow, SubjectRow
from service.storage.database import in_pieces, writing
from service.storage.kept_answers import delete_answers_about
from service.storage.vacuum import mark_for_vacuum

Record = TypeVar("Record", SequenceRecord, SubjectRecord)


@dataclass(frozen=True, slots=True)
class Handover:
    """Walks that changed hands.

    Attributes:
        subject_id: whose they were.
        to: whose they are now.
        sequence_ids: which.
        erased: which of them are gone, because `to` had the very same walks.
        subject_gone: whether `subject_id` has none left, and is not enrolled any more.
    """

    subject_id: str
    to: str
    sequence_ids: tuple[str, ...]
    erased: tuple[str, ...]
    subject_gone: bool


@dataclass(frozen=True, slots=True)
class Corrected(Generic[Record]):
    """What a correction made: the record as it is now, and what changed hands, if anything did."""

    gallery: str
    record: Record
    handover: Handover | None = None


InTransaction = Callable[[Session, Corrected[Any]], None]
"""Work to do in the same transaction; what it raises rolls everything back."""


def edit_sequence(
    engine: Engine,
    in_transaction: InTransaction,
    *,
    sequence_id: str,
    metadata: Metadata | None = None,
    subject_id: str | None = None,
) -> Corrected[SequenceRecord]:
    """Replace a sequence's metadata, give it to another subject of its gallery, or both.

    A subject goes with its last sequence.

    Raises:
        NotFound: there is no such sequence, or subject.
        Conflict: that subject has the very same walk.
    """
    with Session(writing(engine)) as session, session.begin():
        gallery = session.scalar(
            select(GalleryRow.name)
            .join(SequenceRow, SequenceRow.gallery_id == GalleryRow.id)
            .where(SequenceRow.id == sequence_id)
        )
        if gallery is None:
            raise missing_sequence(sequence_id)
        gallery_id, revision = raise_revision(session, gallery)
        row = session.get(SequenceRow, sequence_id)
        if row is None:  # erased while we waited for our turn
            raise missing_sequence(sequence_id)
        if metadata is not None:
            row.details = metadata
            row.view = label(metadata.get("view"))
            row.condition = label(metadata.get("condition"))
        handover = None
        before = row.subject_id
        if subject_id is not None and subject_id != before:
            _require_place(session, gallery, row, subject_id)
            row.subject_id = subject_id
            session.flush()
            gone = _remove_if_empty(session, gallery_id, before)
            handover = Handover(before, subject_id, (sequence_id,), (), gone)
        row.revision = revision
        mark_gone(session, gallery_id, revision, [sequence_id])
        session.flush()
        corrected = Corrected(gallery, sequence_record(row, gallery), handover)
        _forget(session, {sequence_id, before, row.subject_id})
        in_transaction(session, corrected)
    clear(engine)
    return corrected


def edit_subject(
    engine: Engine,
    in_transaction: InTransaction,
    *,
    gallery: str,
    subject_id: str,
    new_id: str | None = None,
    merge_into: str | None = None,
    display_name: str | EllipsisType | None = ...,
    metadata: Metadata | None = None,
) -> Corrected[SubjectRecord]:
    """Describe a subject, and give its walks to another id: a new one, or an enrolled subject's.

    A walk that both have is kept once. Who remains keeps its display name and its metadata, or
    takes the other's where it has none.

    Args:
        engine: of the database.
        in_transaction: see `InTransaction`.
        gallery: the subject's.
        subject_id: the subject.
        new_id: an id that nobody has; not together with `merge_into`.
        merge_into: who is the same person, and remains.
        display_name: of who remains; None removes it.
        metadata: of who remains; replaces all of it.

    Raises:
        NotFound: there is no such gallery, or no such subject.
        Conflict: the new id is another subject's; or a subject was to be merged into itself.
    """
    with Session(writing(engine)) as session, session.begin():
        gallery_id, revision = raise_revision(session, gallery)
        row = remaining = _subject(session, gallery_id, gallery, subject_id)
        if merge_into is not None:
            remaining = _subject(session, gallery_id, gallery, merge_into)
            if remaining is row:
                raise Conflict(
                    "A subject cannot be merged into itself: name another one in `merge_into`.",
                    Reason("merge_into", "same_subject"),
                    slug="same-subject",
                )
        elif new_id is not None and new_id != subject_id:
            if session.get(SubjectRow, (gallery_id, new_id)) is not None:
                raise _taken(new_id)
            remaining = SubjectRow(
                gallery_id=gallery_id, subject_id=new_id, created_at=row.created_at
            )
            session.add(remaining)
        handover = None
        if remaining is not row:
            if remaining.display_name is None:
                remaining.display_name = row.display_name
            remaining.details = remaining.details or row.details
            handover = _hand_over(session, gallery_id, revision, row, remaining)
        if not isinstance(display_name, EllipsisType):
            remaining.display_name = display_name
        if metadata is not None:
            remaining.details = metadata or None
        session.flush()
        count = _count(session, gallery_id, remaining.subject_id)
        corrected = Corrected(gallery, subject_record(remaining, gallery, count), handover)
        moved = () if handover is None else handover.sequence_ids
        _forget(session, {subject_id, remaining.subject_id, *moved})
        in_transaction(session, corrected)
    clear(engine)
    return corrected


def mark_gone(
    session: Session, gallery_id: str, revision: int, sequence_ids: Sequence[str]
) -> None:
    """Mark sequences, as they were before, as gone by this revision."""
    for some in in_pieces(sequence_ids):
        session.execute(
            delete(ErasedSequenceRow).where(  # of those that were corrected before
                ErasedSequenceRow.gallery_id == gallery_id, ErasedSequenceRow.sequence_id.in_(some)
            )
        )
        rows = [
            {"gallery_id": gallery_id, "sequence_id": sequence_id, "revision": revision}
            for sequence_id in some
        ]
        session.execute(insert(ErasedSequenceRow), rows)


def _hand_over(
    session: Session, gallery_id: str, revision: int, row: SubjectRow, to: SubjectRow
) -> Handover:
    """Give every walk of a subject to another one, but what that has already; remove the first."""
    session.flush()
    theirs = (SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id == row.subject_id)
    kept = select(SequenceRow.content_hash).where(
        SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id == to.subject_id
    )
    ids = tuple(session.scalars(select(SequenceRow.id).where(*theirs).order_by(SequenceRow.id)))
    twins = SequenceRow.content_hash.in_(kept)
    erased = tuple(
        session.scalars(select(SequenceRow.id).where(*theirs, twins).order_by(SequenceRow.id))
    )
    mark_ended(session, SequenceRow, and_(*theirs, twins))
    for change in (
        delete(SequenceRow).where(*theirs, twins),
        update(SequenceRow).where(*theirs).values(subject_id=to.subject_id, revision=revision),
    ):
        session.execute(change, execution_options={"synchronize_session": False})
    mark_gone(session, gallery_id, revision, ids)
    session.delete(row)
    session.flush()
    return Handover(row.subject_id, to.subject_id, ids, erased, subject_gone=True)


def _require_place(session: Session, gallery: str, row: SequenceRow, subject_id: str) -> None:
    """Raise unless the walk may become this subject's."""
    if session.get(SubjectRow, (row.gallery_id, subject_id)) is None:
        raise NotFound(
            f"No subject {subject_id!r} is enrolled in the gallery {gallery!r}. Enrol a walk of "
            f"that person first, or rename {row.subject_id!r} with PATCH /subjects/{{subject_id}}.",
            Reason("subject_id", "not_found"),
            slug="subject-not-found",
        )
    twin = select(SequenceRow.id).where(
        SequenceRow.gallery_id == row.gallery_id,
        SequenceRow.subject_id == subject_id,
        SequenceRow.content_hash == row.content_hash,
    )
    if session.scalars(twin).first() is not None:
        raise Conflict(
            f"{subject_id!r} has this very walk already. Erase this one instead, with "
            f"DELETE /sequences/{row.id}.",
            Reason("subject_id", "same_walk"),
            slug="same-walk",
        )


def _remove_if_empty(session: Session, gallery_id: str, subject_id: str) -> bool:
    """Remove a subject that has no sequences left; whether it had none."""
    if _count(session, gallery_id, subject_id):
        return False
    session.delete(session.get_one(SubjectRow, (gallery_id, subject_id)))
    return True


def _subject(session: Session, gallery_id: str, gallery: str, subject_id: str) -> SubjectRow:
    row = session.get(SubjectRow, (gallery_id, subject_id))
    if row is None:
        raise missing_subject(gallery, subject_id)
    return row


def _count(session: Session, gallery_id: str, subject_id: str) -> int:
    query = select(func.count()).where(
        SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id == subject_id
    )
    return session.scalar(query) or 0


def _forget(session: Session, names: Collection[str]) -> None:
    """Leave nothing of what was corrected in kept answers, or in what is left of a page."""
    delete_answers_about(session, names)
    mark_for_vacuum(session.connection())


def _taken(subject_id: str) -> Conflict:
    return Conflict(
        f"{subject_id!r} is enrolled already. Choose another id, or make the two one with "
        "`merge_into`.",
        Reason("subject_id", "exists"),
        slug="subject-exists",
    )

"""The gallery in the database: create, enrol, and what an index needs to follow.

Writers of one gallery take turns: each transaction begins by raising the gallery's revision, which
holds its row (PostgreSQL) or the database's write lock (SQLite) until commit. So revisions become
visible in order, and a reader that has seen revision r has seen everything up to r.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Engine,
    Row,
    Select,
    and_,
    delete,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.foundation.errors import Conflict, NotFound, Reason
from service.gallery.coverage import label
from service.gallery.records import (
    Changes,
    Embedding,
    FollowedSequence,
    GalleryRecord,
    Metadata,
    ModelReference,
    NewSequence,
    SequenceQuality,
    SequenceRecord,
    Silhouettes,
)
from service.gallery.sealing import (
    DamagedEmbedding,
    DamagedSilhouettes,
    Sealing,
    sealing_of,
)
from service.gallery.tables import (
    EmbeddingRow,
    ErasedSequenceRow,
    GalleryRow,
    SequenceRow,
    SubjectRow,
)
from service.storage.database import check_sound, new_id, now, writing

_log = logging.getLogger(__name__)
_WALK = (SequenceRow.id, SequenceRow.silhouettes, SequenceRow.key_id, SequenceRow.content_hash)
_PIECE = 2048  # sequences that are read at once: at 16 x 256 channels, 32 MB
Also = Callable[[Session], None]
"""Work to do in the same transaction; what it raises rolls everything back."""
Admit = Callable[[Session, str, int], Collection[str]]
"""Chooses the sequences to add, by id, in an enrolment's turn to make the gallery's new revision.

Everything up to the revision before is committed, and nothing changes until the transaction ends.
"""


def missing_gallery(name: str) -> NotFound:
    """The error for a gallery that does not exist, with what to do."""
    return NotFound(
        f"There is no gallery {name!r}. Create it with POST /galleries "
        f'{{"name": "{name}"}}, or leave `gallery` out to use "default".',
        Reason("gallery", "not_found"),
        slug="gallery-not-found",
    )


def gallery_exists(name: str) -> Conflict:
    """The error for a gallery whose name is taken."""
    return Conflict(
        f"The gallery {name!r} exists already. Choose another name, or use it as it is.",
        Reason("name", "exists"),
        slug="gallery-exists",
    )


def missing_sequence(sequence_id: str) -> NotFound:
    """The error for a sequence that does not exist."""
    return NotFound(
        f"There is no sequence {sequence_id!r}. GET /subjects/{{subject_id}} lists a subject's.",
        Reason("sequence_id", "not_found"),
        slug="sequence-not-found",
    )


def raise_revision(session: Session, name: str) -> tuple[str, int]:
    """Begin a change of a gallery: its id and the new revision; raises `NotFound`."""
    row = session.execute(
        update(GalleryRow)
        .where(GalleryRow.name == name)
        .values(revision=GalleryRow.revision + 1)
        .returning(GalleryRow.id, GalleryRow.revision)
    ).one_or_none()
    if row is None:
        raise missing_gallery(name)
    return row.id, row.revision


class GalleryStore:
    """Galleries, subjects, sequences and embeddings behind one engine."""

    def __init__(self, engine: Engine, damaged: Callable[[str], None] = lambda _what: None) -> None:
        """`damaged` is told of every damaged row that was read: an embedding, or silhouettes."""
        self.engine = engine
        self._sealing = sealing_of(engine)
        self._damaged = damaged

    def check(self) -> None:
        """Read something: raises what keeps the database from being used."""
        with Session(self.engine) as session:
            session.execute(select(GalleryRow.id).limit(1))
        check_sound(self.engine)

    # Galleries

    def ensure(self, name: str) -> None:
        """Create the gallery unless it exists; safe when several processes start at once."""
        try:
            with Session(writing(self.engine)) as session, session.begin():
                if session.scalar(select(GalleryRow.id).where(GalleryRow.name == name)) is None:
                    session.add(_new_gallery(name, {}))
        except IntegrityError:  # PostgreSQL: another process was a moment faster
            self.head(name)

    def create(
        self,
        name: str,
        metadata: Metadata,
        max_age_days: int | None,
        also: Callable[[Session, GalleryRecord], None],
    ) -> GalleryRecord:
        """Create an empty gallery; raises `Conflict` when the name is taken."""
        row = _new_gallery(name, metadata)
        row.max_age_days = max_age_days
        try:
            with Session(writing(self.engine)) as session, session.begin():
                session.add(row)
                session.flush()
                record = gallery_record(row, 0, 0)
                also(session, record)
        except IntegrityError as error:
            raise gallery_exists(name) from error
        return record

    def gallery(self, name: str) -> GalleryRecord:
        """One gallery with its counts; raises `NotFound`."""
        with Session(self.engine) as session:
            row = session.scalar(select(GalleryRow).where(GalleryRow.name == name))
            if row is None:
                raise missing_gallery(name)
            subjects, sequences = (
                session.scalar(select(func.count()).where(table.gallery_id == row.id)) or 0
                for table in (SubjectRow, SequenceRow)
            )
            return gallery_record(row, subjects, sequences)

    def keep_for(self, name: str, max_age_days: int | None) -> None:
        """Set how long a gallery keeps its sequences (None: for ever); raises `NotFound`."""
        changed = (
            update(GalleryRow)
            .where(GalleryRow.name == name)
            .values(max_age_days=max_age_days)
            .returning(GalleryRow.id)
        )
        with Session(writing(self.engine)) as session, session.begin():
            if session.scalar(changed) is None:
                raise missing_gallery(name)

    # Enrolment

    def enrol(
        self,
        gallery: str,
        subject_id: str,
        sequences: Sequence[NewSequence],
        digest: str,
        also: Also,
        admit: Admit | None = None,
    ) -> None:
        """Add sequences with their embeddings to a subject: all that `admit` chooses, or none."""
        at = now()
        # Compress and encrypt before taking the lock.
        rows = [_sequence_row(item, self._sealing) for item in sequences]
        embeddings = [
            embedding_row(item.sequence_id, digest, item.embedding, self._sealing)
            for item in sequences
        ]
        with Session(writing(self.engine)) as session, session.begin():
            gallery_id, revision = raise_revision(session, gallery)
            self._sealing.require_current(session)
            if admit is not None:
                admitted = admit(session, gallery_id, revision)
                rows = [row for row in rows if row.id in admitted]
                embeddings = [row for row in embeddings if row.sequence_id in admitted]
            if session.get(SubjectRow, (gallery_id, subject_id)) is None:
                session.add(SubjectRow(gallery_id=gallery_id, subject_id=subject_id, created_at=at))
                session.flush()
            for row in rows:
                row.gallery_id = gallery_id
                row.subject_id = subject_id
                row.revision = revision
                row.created_at = at
            session.add_all(rows)
            session.flush()
            session.add_all(embeddings)
            also(session)

    # Reading sequences

    def sequence(self, sequence_id: str) -> SequenceRecord:
        """One sequence without its silhouettes; raises `NotFound`."""
        with Session(self.engine) as session:
            row = session.execute(
                select(SequenceRow, GalleryRow.name)
                .join(GalleryRow, GalleryRow.id == SequenceRow.gallery_id)
                .where(SequenceRow.id == sequence_id)
            ).one_or_none()
        if row is None:
            raise missing_sequence(sequence_id)
        return sequence_record(row[0], row[1])

    def silhouettes(self, sequence_id: str) -> Silhouettes:
        """The normalised silhouettes, uint8 [s, 64, 64]; raises `NotFound`."""
        with Session(self.engine) as session:
            row = session.execute(select(*_WALK).where(SequenceRow.id == sequence_id)).one_or_none()
        if row is None:
            raise missing_sequence(sequence_id)
        return self._silhouettes(row)

    # Following

    def head(self, name: str, digest: str | None = None) -> tuple[str, int, dict[str, Any] | None]:
        """A gallery's id, newest revision and operating point; raises `NotFound`.

        With a checkpoint's digest the point is that checkpoint's or none: after a swap the previous
        one, for a process that still answers with the old model.
        """
        with Session(self.engine) as session:
            row = session.execute(
                select(
                    GalleryRow.id,
                    GalleryRow.revision,
                    GalleryRow.operating_point,
                    GalleryRow.previous_operating_point,
                ).where(GalleryRow.name == name)
            ).one_or_none()
        if row is None:
            raise missing_gallery(name)
        if digest is None:
            return row.id, row.revision, row.operating_point
        for kept in (row.operating_point, row.previous_operating_point):
            if kept is not None and kept["digest"] == digest:
                return row.id, row.revision, kept
        return row.id, row.revision, None

    def changes(self, gallery_id: str, since: int, digest: str) -> Changes:
        """What came and what went after revision `since`, with this checkpoint's embeddings.

        A long history comes in pieces: the answer's `revision` says how far this one goes. Raises
        `NotFound` when the gallery is gone.
        """
        with Session(self.engine) as session:
            newest = session.scalar(select(GalleryRow.revision).where(GalleryRow.id == gallery_id))
            if newest is None:
                raise NotFound("The gallery was erased while it was searched.")
            beyond = session.scalar(
                select(SequenceRow.revision)
                .where(SequenceRow.gallery_id == gallery_id, SequenceRow.revision > since)
                .order_by(SequenceRow.revision)
                .offset(_PIECE)
                .limit(1)
            )
            if beyond is not None:  # a revision is never split
                newest = max(beyond - 1, since + 1)
            added = session.execute(
                sequences_under(digest, SequenceRow.details)
                .where(
                    SequenceRow.gallery_id == gallery_id,
                    SequenceRow.revision > since,
                    SequenceRow.revision <= newest,
                )
                .order_by(SequenceRow.revision, SequenceRow.id)
            )
            return Changes(
                revision=newest,
                added=tuple(
                    FollowedSequence(
                        row.id,
                        row.subject_id,
                        row.details,
                        None if row.vector is None else self._embedding(row, digest),
                    )
                    for row in added
                ),
                # Nobody who starts from nothing has to forget anything.
                erased=()
                if since == 0
                else tuple(
                    session.scalars(
                        select(ErasedSequenceRow.sequence_id).where(
                            ErasedSequenceRow.gallery_id == gallery_id,
                            ErasedSequenceRow.revision > since,
                            ErasedSequenceRow.revision <= newest,
                        )
                    )
                ),
            )

    # Embeddings of another checkpoint

    def count_without(self, digest: str, gallery_id: str | None = None) -> int:
        """How many sequences, of this gallery or of all, this checkpoint has not embedded."""
        query = select(func.count()).select_from(SequenceRow).where(lacks(digest))
        if gallery_id is not None:
            query = query.where(SequenceRow.gallery_id == gallery_id)
        with Session(self.engine) as session:
            return session.scalar(query) or 0

    def some_without(
        self, digest: str, limit: int, gallery_id: str | None = None, after: str = ""
    ) -> list[tuple[str, Silhouettes]]:
        """Up to `limit` sequences that this checkpoint has not embedded, by id, after an id."""
        query = (
            select(*_WALK)
            .where(lacks(digest), SequenceRow.id > after)
            .order_by(SequenceRow.id)
            .limit(limit)
        )
        if gallery_id is not None:
            query = query.where(SequenceRow.gallery_id == gallery_id)
        with Session(self.engine) as session:
            return [(row.id, self._silhouettes(row)) for row in session.execute(query)]

    def add_embeddings(self, digest: str, made: Iterable[tuple[str, Embedding]]) -> None:
        """Keep embeddings; skips sequences erased, or embedded by somebody else, meanwhile."""
        rows = {
            sequence_id: embedding_row(sequence_id, digest, embedding, self._sealing)
            for sequence_id, embedding in made
        }
        with Session(writing(self.engine)) as session, session.begin():
            self._sealing.require_current(session)
            wanted = session.scalars(
                select(SequenceRow.id)
                .where(SequenceRow.id.in_(list(rows)), lacks(digest))
                .with_for_update()
            )
            session.add_all(rows[sequence_id] for sequence_id in wanted)

    def replace_embeddings(self, digest: str, made: Iterable[tuple[str, Embedding]]) -> None:
        """Keep embeddings in the place of those there are; skips sequences erased meanwhile."""
        rows = {
            sequence_id: embedding_row(sequence_id, digest, embedding, self._sealing)
            for sequence_id, embedding in made
        }
        with Session(writing(self.engine)) as session, session.begin():
            self._sealing.require_current(session)
            _drop_embeddings(session, digest, list(rows))
            there = select(SequenceRow.id).where(SequenceRow.id.in_(list(rows))).with_for_update()
            session.add_all(rows[sequence_id] for sequence_id in session.scalars(there))

    def drop_embeddings(self, digest: str, sequence_ids: Sequence[str]) -> None:
        """Forget what a checkpoint made of these sequences."""
        with Session(writing(self.engine)) as session, session.begin():
            _drop_embeddings(session, digest, sequence_ids)

    def _embedding(self, row: Row[*tuple[Any, ...]], digest: str) -> Embedding:
        """Of a row of `sequences_under`."""
        try:
            return self._sealing.embedding(
                row.id, digest, row.vector, row.key_id, parts=row.parts, checksum=row.checksum
            )
        except DamagedEmbedding:
            self._tell("embedding", row.id)
            raise

    def _silhouettes(self, row: Row[*tuple[Any, ...]]) -> Silhouettes:
        """Of a row of `_WALK`."""
        try:
            return self._sealing.silhouettes(
                row.id, row.silhouettes, row.key_id, hashed=row.content_hash
            )
        except DamagedSilhouettes:
            self._tell("silhouettes", row.id)
            raise

    def _tell(self, what: str, sequence_id: str) -> None:
        _log.error("stored data is damaged: %s", what, extra={"sequence_id": sequence_id})
        self._damaged(what)


def _drop_embeddings(session: Session, digest: str, sequence_ids: Sequence[str]) -> None:
    session.execute(
        delete(EmbeddingRow).where(
            EmbeddingRow.sequence_id.in_(sequence_ids), EmbeddingRow.digest == digest
        )
    )


def embedding_row(
    sequence_id: str, digest: str, embedding: Embedding, sealing: Sealing
) -> EmbeddingRow:
    """The row for one embedding float32 [p, c]."""
    parts, channels = embedding.shape
    vector = sealing.seal_embedding(sequence_id, digest, embedding)
    return EmbeddingRow(
        sequence_id=sequence_id,
        digest=digest,
        parts=parts,
        channels=channels,
        vector=vector,
        checksum=sealing.checksum(sequence_id, digest, vector, parts=parts),
        key_id=sealing.key_id,
    )


def sequence_record(row: SequenceRow, gallery: str) -> SequenceRecord:
    """A sequence's row as a record."""
    quality = row.quality
    return SequenceRecord(
        sequence_id=row.id,
        gallery=gallery,
        subject_id=row.subject_id,
        frames=row.frames,
        quality=SequenceQuality(
            quality["score"], tuple(quality["issues"]), quality["frames_in"], quality["dropped"]
        ),
        metadata=row.details,
        content_hash=row.content_hash,
        created_at=row.created_at,
    )


def embedding_of(row: EmbeddingRow, sealing: Sealing) -> Embedding:
    """The embedding float32 [p, c] in a row; raises as `Sealing.embedding` does."""
    return sealing.embedding(
        row.sequence_id,
        row.digest,
        row.vector,
        row.key_id,
        parts=row.parts,
        checksum=row.checksum,
    )


def sequences_under(digest: str, *columns: InstrumentedAttribute[Any]) -> Select[tuple[Any, ...]]:
    """Sequences with what a checkpoint made of each: `vector` is None where it has made nothing.

    Columns are the sequence's `id` and `subject_id`, those that are asked for, and the embedding's
    `parts`, `channels`, `vector`, `checksum` and `key_id`, for `Sealing.embedding`.
    """
    embedding = (
        EmbeddingRow.parts,
        EmbeddingRow.channels,
        EmbeddingRow.vector,
        EmbeddingRow.checksum,
        EmbeddingRow.key_id,
    )
    return select(SequenceRow.id, SequenceRow.subject_id, *columns, *embedding).outerjoin(
        EmbeddingRow,
        and_(EmbeddingRow.sequence_id == SequenceRow.id, EmbeddingRow.digest == digest),
    )


def lacks(digest: str) -> ColumnElement[bool]:
    """The condition that a sequence has no embedding of this checkpoint."""
    return ~exists().where(
        EmbeddingRow.sequence_id == SequenceRow.id, EmbeddingRow.digest == digest
    )


def _new_gallery(name: str, metadata: Metadata) -> GalleryRow:
    return GalleryRow(
        id=new_id(), name=name, revision=0, details=metadata, operating_point=None, created_at=now()
    )


def gallery_record(row: GalleryRow, subjects: int, sequences: int) -> GalleryRecord:
    """A gallery's row as a record."""
    return GalleryRecord(
        gallery_id=row.id,
        name=row.name,
        revision=row.revision,
        subjects=subjects,
        sequences=sequences,
        metadata=row.details,
        operating_point=row.operating_point,
        max_age_days=row.max_age_days,
        created_at=row.created_at,
        active=pin(row.active_model, row.active_digest),
        previous=pin(row.previous_model, row.previous_digest),
    )


def pin(name: str | None, digest: str | None) -> ModelReference | None:
    """A model as a gallery's row names it."""
    return None if name is None or digest is None else ModelReference(name, digest)


def _sequence_row(item: NewSequence, sealing: Sealing) -> SequenceRow:
    return SequenceRow(
        id=item.sequence_id,
        frames=len(item.silhouettes),
        silhouettes=sealing.seal_silhouettes(item.sequence_id, item.silhouettes),
        key_id=sealing.key_id,
        content_hash=sealing.content_hash(item.silhouettes),
        quality=asdict(item.quality),
        details=item.metadata,
        view=label(item.metadata.get("view")),
        condition=label(item.metadata.get("condition")),
    )

"""The gallery in the database: create galleries, enrol, read what has changed.

Writers of one gallery take turns: each transaction begins by raising the gallery's revision, which
holds its row (PostgreSQL) or the database's write lock (SQLite) until commit. So revisions become
visible in order, and a reader that has seen revision r has seen everything up to r.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Engine,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from models.card import ModelReference
from models.silhouettes.types import Quality
from service.foundation.errors import Conflict, NotFound, Reason
from service.gallery.coverage import label
from service.gallery.records import (
    AddedSequence,
    Changes,
    Embedding,
    FittedScene,
    GalleryRecord,
    Metadata,
    SequenceRecord,
    Silhouettes,
    SubjectRecord,
    Walk,
)
from service.gallery.sealing import (
    DamagedEmbedding,
    DamagedSilhouettes,
    ErasedWalk,
    KeptEmbedding,
    sealing_of,
)
from service.gallery.tables import (
    EmbeddingRow,
    ErasedSequenceRow,
    GalleryRow,
    SceneRow,
    SequenceRow,
    SubjectRow,
)
from service.storage.database import check_sound, in_pieces, new_id, now, writing

_log = logging.getLogger(__name__)
_HEAD = (  # read at every search
    select(
        GalleryRow.id,
        GalleryRow.revision,
        GalleryRow.operating_point,
        GalleryRow.previous_operating_point,
        SceneRow.plain_operating_point,
    )
    .outerjoin(
        SceneRow,
        and_(SceneRow.gallery_id == GalleryRow.id, SceneRow.digest == bindparam("digest")),
    )
    .where(GalleryRow.name == bindparam("name"))
)
_WALK = (SequenceRow.id, SequenceRow.silhouettes, SequenceRow.key_id, SequenceRow.content_hash)


class GalleryChanged(Exception):
    """The gallery that walks were compared with has lost something since: compare them again."""


class Head(NamedTuple):
    """A gallery's newest revision, and the operating points that are kept of it.

    The first is the gallery's own; the others are of its previous model, and of the model that was
    asked for without its scene transform.
    """

    gallery_id: str
    revision: int
    points: tuple[dict[str, Any] | None, ...]

    @property
    def operating_point(self) -> dict[str, Any] | None:
        """The gallery's own."""
        return self.points[0]

    def point_for(self, digest: str, scene: str | None) -> dict[str, Any] | None:
        """What holds for a checkpoint's similarities through a scene transform of this version."""
        for kept in self.points:
            if kept and kept["digest"] == digest and kept.get("scene") == scene:
                return kept
        return None


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A walk that is ready to be written: compressed, encrypted and hashed.

    Attributes:
        sequence_id: under which it is enrolled.
        walk: what was sealed.
        hashes: under which the gallery may have the same frames already; the plain hash last.
        row: of the sequence, which has no gallery yet.
        embedding: its row.
    """

    sequence_id: str
    walk: Walk
    hashes: tuple[str, ...]
    row: SequenceRow
    embedding: EmbeddingRow


@dataclass(frozen=True, slots=True)
class EnrolmentTransaction:
    """A transaction that makes a gallery's next revision, `revision`.

    Everything up to the revision before is committed. Nobody else changes the gallery until the
    transaction ends.
    """

    session: Session
    gallery_id: str
    subject_id: str
    revision: int

    def add(self, sequences: Collection[NewSequence]) -> None:
        """Add sequences to the subject, who is enrolled if new."""
        at = now()
        session, subject = self.session, (self.gallery_id, self.subject_id)
        if session.get(SubjectRow, subject) is None:
            session.add(
                SubjectRow(gallery_id=self.gallery_id, subject_id=self.subject_id, created_at=at)
            )
            session.flush()
        for sequence in sequences:
            row = sequence.row
            row.gallery_id, row.subject_id = subject
            row.revision, row.created_at = self.revision, at
        session.add_all(sequence.row for sequence in sequences)
        session.flush()
        session.add_all(sequence.embedding for sequence in sequences)
        session.flush()


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
    raised = _raise_revision(session, GalleryRow.name == name)
    if raised is None:
        raise missing_gallery(name)
    return raised


def _raise_revision(session: Session, which: ColumnElement[bool]) -> tuple[str, int] | None:
    # On the connection: no session has changed the row, so there is nothing to keep in step.
    row = (
        session.connection()
        .execute(
            update(GalleryRow)
            .where(which)
            .values(revision=GalleryRow.revision + 1)
            .returning(GalleryRow.id, GalleryRow.revision)
        )
        .one_or_none()
    )
    return None if row is None else (row.id, row.revision)


class GalleryStore:
    """Galleries, subjects, sequences and embeddings behind one engine."""

    def __init__(
        self,
        engine: Engine,
        damaged: Callable[[str], None] = lambda _what: None,
        *,
        piece: int = 2048,
    ) -> None:
        """`damaged` is told of every damaged row that was read: an embedding, or silhouettes.

        `piece` sequences are read at once: at 16 x 256 channels, 32 MB.
        """
        self.engine = engine
        self._piece = piece
        self._sealing = sealing_of(engine)
        self._damaged = damaged

    @property
    def encrypted(self) -> bool:
        """Whether what is written from now on is encrypted."""
        return self._sealing.key_id is not None

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
        in_transaction: Callable[[Session, GalleryRecord], None],
    ) -> GalleryRecord:
        """Create an empty gallery; raises `Conflict` when the name is taken."""
        row = _new_gallery(name, metadata)
        row.max_age_days = max_age_days
        try:
            with Session(writing(self.engine)) as session, session.begin():
                session.add(row)
                session.flush()
                record = gallery_record(row, 0, 0)
                in_transaction(session, record)
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
            scenes = fitted_scenes(session, [row.id])[row.id]
            return gallery_record(row, subjects, sequences, scenes)

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

    def seal(self, walks: Sequence[Walk], metadata: Metadata, digest: str) -> list[NewSequence]:
        """Make walks ready for an enrolment; it takes too long for an event loop or a lock.

        `digest` is of the checkpoint that embedded them.
        """
        sequence_ids = [new_id() for _ in walks]
        self._sealing.begin(sequence_ids)
        return [
            self._sealed(sequence_id, walk, metadata, digest)
            for sequence_id, walk in zip(sequence_ids, walks, strict=True)
        ]

    def _sealed(self, sequence_id: str, walk: Walk, metadata: Metadata, digest: str) -> NewSequence:
        hashes = self._sealing.content_hashes(walk.silhouettes)
        quality = asdict(walk.quality)
        del quality["frames_used"]  # the row's `frames`
        row = SequenceRow(
            id=sequence_id,
            frames=len(walk.silhouettes),
            silhouettes=self._sealing.seal_silhouettes(sequence_id, walk.silhouettes),
            key_id=self._sealing.walks_key_id,
            content_hash=hashes[0],
            quality=quality,
            details=metadata,
            view=label(metadata.get("view")),
            condition=label(metadata.get("condition")),
        )
        embedding = self._sealing.seal_embedding(sequence_id, digest, walk.embedding)
        return NewSequence(sequence_id, walk, hashes, row, embedding)

    @contextmanager
    def enrolling(self, gallery_id: str, subject_id: str) -> Iterator[EnrolmentTransaction]:
        """A transaction that enrols a subject: it is committed as a whole, or not at all.

        Raises `GalleryChanged` when the gallery is gone, and `Unavailable` when it is encrypted
        with a key that this process has not got.
        """
        with Session(writing(self.engine)) as session, session.begin():
            raised = _raise_revision(session, GalleryRow.id == gallery_id)
            if raised is None:
                raise GalleryChanged
            self._sealing.require_current(session)
            yield EnrolmentTransaction(session, gallery_id, subject_id, raised[1])

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

    # Changes

    def head(self, name: str, digest: str | None = None) -> Head:
        """A gallery's newest revision and operating points; raises `NotFound`.

        After a swap a process may still answer with the old model, or compare as before the swap of
        a scene transform: `Head.point_for` finds what it decides by. `digest` is of its checkpoint.
        """
        with self.engine.connect() as connection:
            row = connection.execute(_HEAD, {"name": name, "digest": digest}).one_or_none()
        if row is None:
            raise missing_gallery(name)
        gallery_id, revision, *points = row
        return Head(gallery_id, revision, tuple(points))

    def changes(self, gallery_id: str, since: int, digest: str) -> Changes:
        """What came and what went after revision `since`, with this checkpoint's embeddings.

        A long history comes in pieces: the answer's `revision` says how far this one goes. Raises
        `NotFound` when the gallery is gone.
        """
        with Session(self.engine) as session:
            newest = session.scalar(select(GalleryRow.revision).where(GalleryRow.id == gallery_id))
            if newest is None:
                raise NotFound("The gallery was erased while it was searched.")
            if newest > since + 1:  # a revision is never split
                beyond = session.scalar(
                    select(SequenceRow.revision)
                    .where(SequenceRow.gallery_id == gallery_id, SequenceRow.revision > since)
                    .order_by(SequenceRow.revision)
                    .offset(self._piece)
                    .limit(1)
                )
                if beyond is not None:
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
            # An index that is built from nothing has nothing to forget.
            erased = (
                ()
                if since == 0
                else tuple(
                    session.scalars(
                        select(ErasedSequenceRow.sequence_id).where(
                            ErasedSequenceRow.gallery_id == gallery_id,
                            ErasedSequenceRow.revision > since,
                            ErasedSequenceRow.revision <= newest,
                        )
                    )
                )
            )
            self._sealing.forget(erased)
            return Changes(newest, tuple(self._each_added(added)), erased)

    def embeddings(self, digest: str, sequence_ids: Collection[str]) -> list[tuple[str, Embedding]]:
        """What a checkpoint made of these sequences, in no order; without those that are gone."""
        query = select(
            EmbeddingRow.sequence_id,
            EmbeddingRow.digest,
            EmbeddingRow.parts,
            EmbeddingRow.vector,
            EmbeddingRow.checksum,
            EmbeddingRow.key_id,
        ).where(EmbeddingRow.digest == digest, EmbeddingRow.sequence_id.in_(sequence_ids))
        with Session(self.engine) as session:
            rows = session.execute(query).all()
        self._sealing.fetch(row.sequence_id for row in rows)
        found = []
        for row in rows:
            with suppress(ErasedWalk):
                found.append((row.sequence_id, self._embedding(row)))
        return found

    def enrolled(
        self,
        gallery_id: str,
        digest: str,
        *,
        sequence_ids: Collection[str] = (),
        subject_ids: Collection[str] = (),
    ) -> list[AddedSequence]:
        """Of these sequences, and these subjects' sequences, those that are in the gallery now.

        In no order, with this checkpoint's embeddings.
        """
        query = sequences_under(digest, SequenceRow.details).where(
            SequenceRow.gallery_id == gallery_id
        )
        found: dict[str, AddedSequence] = {}
        with Session(self.engine) as session:
            for column, ids in (
                (SequenceRow.id, sequence_ids),
                (SequenceRow.subject_id, subject_ids),
            ):
                for some in map(column.in_, in_pieces(ids)):
                    rows = session.execute(query.where(some))
                    found |= {one.sequence_id: one for one in self._each_added(rows)}
        return list(found.values())

    def count_newer(self, gallery_id: str, since: int, most: int) -> int:
        """How many sequences came after revision `since`; `most` if they are more."""
        some = (
            select(SequenceRow.id)
            .where(SequenceRow.gallery_id == gallery_id, SequenceRow.revision > since)
            .limit(most)
        )
        with Session(self.engine) as session:
            return session.scalar(select(func.count()).select_from(some.subquery())) or 0

    def count_subjects(self, gallery_id: str) -> int:
        """How many subjects the gallery has."""
        query = select(func.count()).where(SubjectRow.gallery_id == gallery_id)
        with Session(self.engine) as session:
            return session.scalar(query) or 0

    def views(self, gallery_id: str, subject_ids: Collection[str]) -> dict[str, set[str | None]]:
        """The views of these subjects' sequences; None is among them if a sequence names none."""
        query = (
            select(SequenceRow.subject_id, SequenceRow.view)
            .where(SequenceRow.gallery_id == gallery_id, SequenceRow.subject_id.in_(subject_ids))
            .distinct()
        )
        found: dict[str, set[str | None]] = {}
        with Session(self.engine) as session:
            for subject_id, view in session.execute(query):
                found.setdefault(subject_id, set()).add(view)
        return found

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

    def add_embeddings(
        self, digest: str, made: Iterable[tuple[str, Embedding]], *, replace: bool = False
    ) -> None:
        """Keep embeddings of sequences that lack them, or `replace` those that there are.

        Skips sequences that were erased, or embedded by another process, meanwhile.
        """
        rows = self._sealing.seal_embeddings(digest, made)
        with Session(writing(self.engine)) as session, session.begin():
            self._sealing.require_current(session)
            if replace:
                _drop_embeddings(session, digest, list(rows))
            wanted = hold_without(session, digest, rows)
            session.add_all(rows[sequence_id] for sequence_id in wanted)

    def drop_embeddings(self, digest: str, sequence_ids: Sequence[str]) -> None:
        """Forget what a checkpoint made of these sequences."""
        with Session(writing(self.engine)) as session, session.begin():
            _drop_embeddings(session, digest, sequence_ids)

    def _each_added(self, rows: Iterable[Row[*tuple[Any, ...]]]) -> Iterator[AddedSequence]:
        """Of rows of `sequences_under`, without those that are being erased."""
        for row in rows:
            kept = row.EmbeddingRow
            with suppress(ErasedWalk):
                embedding = None if kept is None else self._embedding(kept)
                yield AddedSequence(row.id, row.subject_id, row.details, embedding)

    def _embedding(self, row: KeptEmbedding) -> Embedding:
        try:
            return self._sealing.embedding(row)
        except DamagedEmbedding:
            self._tell("embedding", row.sequence_id)
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


def sequence_record(row: SequenceRow, gallery: str) -> SequenceRecord:
    """A sequence's row as a record."""
    quality = row.quality
    return SequenceRecord(
        sequence_id=row.id,
        gallery=gallery,
        subject_id=row.subject_id,
        frames=row.frames,
        quality=Quality(
            score=quality["score"],
            issues=tuple(quality["issues"]),
            frames_in=quality["frames_in"],
            frames_used=row.frames,
            dropped=quality["dropped"],
        ),
        metadata=row.details,
        content_hash=row.content_hash,
        created_at=row.created_at,
    )


def subject_record(row: SubjectRow, gallery: str, sequences: int) -> SubjectRecord:
    """A subject's row as a record."""
    return SubjectRecord(
        gallery=gallery,
        subject_id=row.subject_id,
        display_name=row.display_name,
        metadata=row.details or {},
        sequences=sequences,
        created_at=row.created_at,
    )


def sequences_under(digest: str, *columns: InstrumentedAttribute[Any]) -> Select[tuple[Any, ...]]:
    """Sequences with what a checkpoint made of each.

    Columns are the sequence's `id` and `subject_id`, those that are asked for, and `EmbeddingRow`,
    which is None where the checkpoint has not embedded the sequence.
    """
    return select(SequenceRow.id, SequenceRow.subject_id, *columns, EmbeddingRow).outerjoin(
        EmbeddingRow,
        and_(EmbeddingRow.sequence_id == SequenceRow.id, EmbeddingRow.digest == digest),
    )


def lacks(digest: str) -> ColumnElement[bool]:
    """The condition that a sequence has no embedding of this checkpoint."""
    return ~exists().where(
        EmbeddingRow.sequence_id == SequenceRow.id, EmbeddingRow.digest == digest
    )


def hold_without(session: Session, digest: str, sequence_ids: Collection[str]) -> Sequence[str]:
    """Lock these sequences, and return which of them this checkpoint has not embedded.

    First they are held: another process that embeds them has then written what it made.
    """
    these = SequenceRow.id.in_(list(sequence_ids))
    session.scalars(
        select(SequenceRow.id).where(these).order_by(SequenceRow.id).with_for_update()
    ).all()
    return session.scalars(select(SequenceRow.id).where(these, lacks(digest))).all()


def _new_gallery(name: str, metadata: Metadata) -> GalleryRow:
    return GalleryRow(
        id=new_id(), name=name, revision=0, details=metadata, operating_point=None, created_at=now()
    )


def fitted_scenes(
    session: Session, gallery_ids: Collection[str]
) -> dict[str, tuple[FittedScene, ...]]:
    """What there is to say of these galleries' scenes, by gallery."""
    found: dict[str, tuple[FittedScene, ...]] = dict.fromkeys(gallery_ids, ())
    for row in session.scalars(select(SceneRow).where(SceneRow.gallery_id.in_(gallery_ids))):
        if row.fitted_at is None:
            continue
        found[row.gallery_id] += (
            FittedScene(
                digest=row.digest,
                used=row.version is not None,
                fitted_at=row.fitted_at,
                revision=row.revision,
                gain=row.gain,
                interval=(row.gain_low, row.gain_high),
            ),
        )
    return found


def gallery_record(
    row: GalleryRow, subjects: int, sequences: int, scenes: tuple[FittedScene, ...] = ()
) -> GalleryRecord:
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
        active=gallery_model(row.active_model, row.active_digest),
        previous=gallery_model(row.previous_model, row.previous_digest),
        scenes=scenes,
    )


def gallery_model(name: str | None, digest: str | None) -> ModelReference | None:
    """A model as a gallery's row names it."""
    return None if name is None or digest is None else ModelReference(name, digest)

"""Which collections the vector database has for this deployment, and how far each one follows.

The rows are this database's: what a collection has, who writes it, and which are to be dropped. So
nothing depends on the vector database's own memory: a collection that was lost is made anew under
another name, and one that is no longer searched is dropped by whoever looks next.

One process at a time writes a collection. One that is silent is taken over; if it wakes up, its
next step finds that out (`WriterReplaced`) and it takes back what it wrote last.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Engine, Select, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.foundation.errors import Unavailable
from service.gallery.milvus_index import CollectionGone, Milvus
from service.gallery.scenes import versions
from service.gallery.tables import (
    ErasedSequenceRow,
    GalleryRow,
    IndexCollectionRow,
    SequenceRow,
)
from service.storage.database import in_pieces, now, writing

_PREFIX = "gaitid_"
_GRACE = timedelta(seconds=60)  # in which every process exchanges a collection for its successor
_SILENT_S = 90.0  # of a writer whose beat stands still: longer than any of its calls
_LOOK_S = 0.1

_log = logging.getLogger(__name__)


class WriterReplaced(Exception):
    """Another process writes the collection, or it serves nothing any more."""


class Serves(NamedTuple):
    """What a collection is of. Indexes of another epoch are to be built anew."""

    gallery_id: str
    digest: str
    scene: str | None
    epoch: int

    @property
    def text(self) -> str:
        """All of it in one string, by which there is one collection."""
        return f"{self.gallery_id} {self.digest} {self.scene or '-'} {self.epoch}"


class IndexCollection(NamedTuple):
    """A collection, as its row says."""

    name: str
    revision: int  # that it has reached; 0: it is still to be made
    written: int  # the moment, by the vector database's clock, from which on it has it all


class IndexCollections:
    """The collections of every gallery. From any thread, in any number of processes."""

    def __init__(self, engine: Engine, milvus: Milvus) -> None:
        self._engine = engine
        self.milvus = milvus
        self._heard: dict[str, tuple[tuple[str | None, int], float]] = {}

    def of(self, serves: Serves) -> IndexCollection:
        """The collection that serves this; a row for a new one if there is none."""
        with Session(self._engine) as session:
            row = session.scalar(_serving(serves))
        if row is not None:
            return _collection(row)
        try:
            with Session(writing(self._engine)) as session, session.begin():
                row = _new_row(serves)
                session.add(row)
                session.flush()
                return _collection(row)
        except IntegrityError:  # another process was a moment faster
            return self.of(serves)

    # Writing

    def claim(self, serves: Serves, writer: str) -> IndexCollection | None:
        """Begin to write a collection; None while another process does.

        A collection that its former writer had not finished making is begun anew, under a new
        name: what that process may still write, it writes to the old one.
        """
        with Session(self._engine) as session:
            row = session.scalar(_serving(serves))
        if row is None:
            return None
        seen = (row.writer, row.beat)
        if row.writer not in (None, writer):
            known, since = self._heard.get(row.name, ((None, -1), 0.0))
            if known != seen:
                self._heard[row.name] = (seen, time.monotonic())
                return None
            if time.monotonic() < since + _SILENT_S:
                return None
            _log.warning("the writer of an index collection is silent, and is replaced")
            if row.revision == 0:
                self.renew(serves, row.name)
                return self.claim(serves, writer)
        return self._update(
            (IndexCollectionRow.name == row.name)
            & (IndexCollectionRow.beat == row.beat)
            & or_(IndexCollectionRow.writer == row.writer, IndexCollectionRow.writer.is_(None)),
            writer=writer,
        )

    def beat(self, name: str, writer: str) -> None:
        """Say that the writer lives; raises `WriterReplaced`."""
        self.advance(name, writer)

    def advance(self, name: str, writer: str, **reached: Any) -> IndexCollection:
        """Note what the writer has reached, columns by name; raises `WriterReplaced`."""
        mine = (IndexCollectionRow.name == name) & (IndexCollectionRow.writer == writer)
        row = self._update(mine, **reached)
        if row is None:
            raise WriterReplaced
        return row

    def release(self, name: str, writer: str) -> None:
        """Stop writing; nothing happens if another process does."""
        mine = (IndexCollectionRow.name == name) & (IndexCollectionRow.writer == writer)
        self._update(mine, writer=None)

    def take_back(self, name: str, sequence_ids: Sequence[str]) -> None:
        """Delete those of these rows whose sequences are gone: who wrote them was too late."""
        here = set(sequence_ids)
        with Session(self._engine) as session:
            for some in in_pieces(sequence_ids):
                here -= set(session.scalars(select(SequenceRow.id).where(SequenceRow.id.in_(some))))
        try:
            self.milvus.delete(name, sorted(here))
        except CollectionGone:
            return

    def lost(self, serves: Serves, name: str) -> None:
        """Begin anew with a collection that the vector database does not know."""
        if name not in self.milvus.names():
            _log.warning("an index collection is gone from the vector database, and is made anew")
            self.renew(serves, name)

    def renew(self, serves: Serves, name: str) -> None:
        """Put a new, empty collection in the place of the one of this name, which is dropped."""
        with Session(writing(self._engine)) as session, session.begin():
            gone = session.scalar(
                update(IndexCollectionRow)
                .where(IndexCollectionRow.name == name, IndexCollectionRow.serves == serves.text)
                .values(serves=None)
                .returning(IndexCollectionRow.name)
            )
            if gone is not None:  # else another process did
                session.add(_new_row(serves))

    # Erasing and dropping

    def erase(self, gallery_id: str, *, within_s: float) -> Literal["deleted", "pending"]:
        """Delete what was erased from a gallery from all of its collections.

        Writers do so as well; here it is done at once, and where nobody writes.

        Args:
            gallery_id: the gallery.
            within_s: how long a writer at work is waited for, who may be adding what was erased.

        Returns:
            `deleted` if nothing of it is left to find; else `pending`: the vector database is away,
            or is still being written. `tidy` and writers see to it then.
        """
        deadline = time.monotonic() + within_s
        names = select(IndexCollectionRow.name).where(IndexCollectionRow.gallery_id == gallery_id)
        with Session(self._engine) as session:
            there = session.get(GalleryRow, gallery_id) is not None
            found = session.scalars(names).all()
        try:
            if not there:
                self.sweep()
                return "deleted"
            done = [self._erase(name, deadline) for name in found]
        except Unavailable:
            return "pending"
        return "deleted" if all(done) else "pending"

    def sweep(self) -> None:
        """Drop the collections that nothing is searched in; raises `Unavailable`."""
        for row in self._rows():
            if self._is_wanted(row):
                continue
            with Session(self._engine) as session:
                gallery = session.get(GalleryRow, row.gallery_id)
            if row.serves is not None and gallery is not None:
                if not self._has_successor(row):
                    continue
                if row.stale_at is None:
                    self._update(IndexCollectionRow.name == row.name, stale_at=now())
                    continue
                if now() < row.stale_at + _GRACE:
                    continue
            self.milvus.drop(row.name)
            with Session(writing(self._engine)) as session, session.begin():
                session.execute(
                    delete(IndexCollectionRow).where(IndexCollectionRow.name == row.name)
                )

    def tidy(self) -> None:
        """Sweep; delete what erasures could not; compact; make anew what has not what it should.

        Raises `Unavailable`.
        """
        self.sweep()
        for row in self._rows():
            self._erase(row.name, 0.0)
            if row.serves is None:
                continue
            try:
                self._check(row)
                if row.holds_deleted:
                    self._compact(row)
            except CollectionGone:
                self.lost(_serves(row), row.name)
        ours = {row.name for row in self._rows()}
        strange = [
            name for name in self.milvus.names() if name.startswith(_PREFIX) and name not in ours
        ]
        if strange:
            _log.warning(
                "the vector database has collections that this database does not know: drop them "
                "unless another deployment has them",
                extra={"collections": strange},
            )

    def _erase(self, name: str, deadline: float) -> bool:
        while True:
            with Session(self._engine) as session:
                row = session.get(IndexCollectionRow, name)
                if row is None:
                    return True
                gone = select(ErasedSequenceRow.sequence_id, ErasedSequenceRow.revision).where(
                    ErasedSequenceRow.gallery_id == row.gallery_id,
                    ErasedSequenceRow.revision > row.erased,
                    # What was corrected is there again.
                    ~select(SequenceRow.id)
                    .where(SequenceRow.id == ErasedSequenceRow.sequence_id)
                    .exists(),
                )
                erased = session.execute(gone).all()
            newest = max((one.revision for one in erased), default=0)
            if not erased or row.revision >= newest:
                return True
            try:
                self.milvus.delete(name, [one.sequence_id for one in erased])
            except CollectionGone:
                return True
            if row.writer is None and self._update(
                (IndexCollectionRow.name == name)
                & (IndexCollectionRow.beat == row.beat)
                & IndexCollectionRow.writer.is_(None),
                erased=newest,
                holds_deleted=True,
            ):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_S)

    def _check(self, row: IndexCollectionRow) -> None:
        """Make a collection anew that has more or fewer rows than the gallery has sequences."""
        before = self._expected(row)
        if before is None:
            return
        count = self.milvus.count(row.name)
        if count == before or self._expected(row) != before:  # the same, or changed meanwhile
            return
        _log.warning(
            "an index collection differs from the database, and is made anew",
            extra={"rows": count, "sequences": before},
        )
        self.renew(_serves(row), row.name)

    def _expected(self, row: IndexCollectionRow) -> int | None:
        """How many rows the collection should have; None unless it is at the newest revision."""
        with Session(self._engine) as session:
            newest = session.scalar(
                select(GalleryRow.revision)
                .join(IndexCollectionRow, IndexCollectionRow.gallery_id == GalleryRow.id)
                .where(
                    IndexCollectionRow.name == row.name,
                    IndexCollectionRow.revision == GalleryRow.revision,
                    IndexCollectionRow.writer.is_(None),
                )
            )
            if not newest:
                return None
            count = select(func.count()).where(SequenceRow.gallery_id == row.gallery_id)
            return session.scalar(count)

    def _compact(self, row: IndexCollectionRow) -> None:
        if self.milvus.compacts:
            self.milvus.compact(row.name)
            self._update(IndexCollectionRow.name == row.name, holds_deleted=False)
        else:
            self.renew(_serves(row), row.name)

    def _is_wanted(self, row: IndexCollectionRow) -> bool:
        if row.serves is None:
            return False
        with Session(self._engine) as session:
            gallery = session.get(GalleryRow, row.gallery_id)
            if gallery is None:
                return False
            newer = session.scalar(
                select(IndexCollectionRow.name).where(
                    IndexCollectionRow.gallery_id == row.gallery_id,
                    IndexCollectionRow.digest == row.digest,
                    IndexCollectionRow.epoch > row.epoch,
                    IndexCollectionRow.serves.is_not(None),
                )
            )
        # A gallery without a model of its own is searched with each process's.
        known = {gallery.active_digest, gallery.previous_digest}
        scene = versions(self._engine, row.gallery_id).get(row.digest)
        return (
            newer is None
            and row.scene == scene
            and (gallery.active_digest is None or row.digest in known)
        )

    def _has_successor(self, row: IndexCollectionRow) -> bool:
        """Whether what is searched instead is complete: until then processes search this one."""
        return any(
            other.gallery_id == row.gallery_id
            and other.name != row.name
            and other.revision >= row.revision
            and self._is_wanted(other)
            for other in self._rows()
        )

    def _rows(self) -> Sequence[IndexCollectionRow]:
        with Session(self._engine) as session:
            return session.scalars(select(IndexCollectionRow)).all()

    def _update(self, which: ColumnElement[bool], **values: Any) -> IndexCollection | None:
        changed = (
            update(IndexCollectionRow)
            .where(which)
            .values(beat=IndexCollectionRow.beat + 1, **values)
            .returning(
                IndexCollectionRow.name, IndexCollectionRow.revision, IndexCollectionRow.written
            )
        )
        with writing(self._engine).begin() as connection:
            row = connection.execute(changed).one_or_none()
        return None if row is None else IndexCollection(*row)


def _serving(serves: Serves) -> Select[IndexCollectionRow]:
    return select(IndexCollectionRow).where(IndexCollectionRow.serves == serves.text)


def _serves(row: IndexCollectionRow) -> Serves:
    return Serves(row.gallery_id, row.digest, row.scene, row.epoch)


def _new_row(serves: Serves) -> IndexCollectionRow:
    return IndexCollectionRow(
        name=f"{_PREFIX}{uuid.uuid4().hex}",
        serves=serves.text,
        gallery_id=serves.gallery_id,
        digest=serves.digest,
        scene=serves.scene,
        epoch=serves.epoch,
    )


def _collection(row: IndexCollectionRow) -> IndexCollection:
    return IndexCollection(row.name, row.revision, row.written)

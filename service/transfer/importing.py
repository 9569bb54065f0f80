"""Put an export into a new gallery: checked to its last byte first, then added all or nothing.

The check unpacks every sequence and writes it to a spool as the database will keep it, so that the
transaction, during which nobody else may write, only copies.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models.files.gallery_file import SUBJECTS
from service.foundation.errors import Reason
from service.gallery.coverage import label
from service.gallery.records import GalleryRecord
from service.gallery.sealing import packed, sealing_of
from service.gallery.store import gallery_exists
from service.gallery.tables import EmbeddingRow, GalleryRow, SequenceRow, SubjectRow
from service.serving import adaptation
from service.storage.database import in_pieces, new_id, take_turns, writing
from service.transfer.export_file import (
    DAMAGED,
    BrokenExport,
    EmbeddingShape,
    ExportedSequence,
    ExportFile,
)

_TURN: Final = "imports"
_AT_ONCE: Final = 256  # rows that are in memory; also what one revision adds
_LENGTH = struct.Struct("<I")


class Spool:
    """Byte strings in a file, read back in the order in which they were written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        """Add one."""
        self._file.write(_LENGTH.pack(len(data)))
        self._file.write(data)

    def rewind(self) -> None:
        """Begin to read."""
        self._file.seek(0)

    def read(self) -> bytes:
        """The next one."""
        (length,) = _LENGTH.unpack(self._file.read(_LENGTH.size))
        return self._file.read(length)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has made.

    Attributes:
        gallery: the new gallery.
        ids_kept: whether the sequences have the ids that they had; else all have new ones.
        embeddings: how many were taken over.
        embeddings_left: how many were left in the file, because no model here made them.
    """

    gallery: GalleryRecord
    ids_kept: bool
    embeddings: int
    embeddings_left: int


class GalleryImport:
    """One import: `check` reads the whole export, then `add` makes the gallery."""

    def __init__(
        self,
        engine: Engine,
        export: ExportFile,
        models: Mapping[str, EmbeddingShape],
        spool: Spool,
        *,
        adapts: bool = False,
    ) -> None:
        """Embeddings are taken over of the checkpoints in `models`, by digest.

        `adapts` says whether the deployment compares by scene transforms.
        """
        self._adapts = adapts
        self._engine = engine
        self._export = export
        self._models = models
        self._spool = spool
        self._sealing = sealing_of(engine)
        self._sequence_ids: list[str] = []
        self._embeddings = self._embeddings_left = 0

    def check(self) -> None:
        """Read all of the export and spool what `add` will need, plain as the export is.

        Raises:
            BrokenExport: something in it is not as `service.transfer.export` writes it.
            TooLarge: a sequence is over the limit.
        """
        subjects = {subject.subject_id for subject in self._export.subjects()}
        without = set(subjects)
        for where, sequence in self._export.sequences():
            if sequence.subject_id not in subjects:
                raise BrokenExport(
                    f"{DAMAGED}: {where}: {SUBJECTS} lacks its subject",
                    Reason(where, "subject_missing"),
                )
            without.discard(sequence.subject_id)
            self._sequence_ids.append(sequence.sequence_id)
            self._spool_sequence(sequence)
        if without:
            raise BrokenExport(
                f"{DAMAGED}: {len(without)} of its subjects have no sequence.",
                Reason(SUBJECTS, "subject_without_sequences"),
            )
        known = frozenset(self._sequence_ids)
        for sequence_id, digest in self._export.arrays():
            if sequence_id not in known:
                raise BrokenExport(
                    f"{DAMAGED}: it has arrays of {sequence_id}, which is no sequence of it.",
                    Reason(sequence_id, "not_listed"),
                )
            self._embeddings_left += digest is not None and digest not in self._models

    def _spool_sequence(self, sequence: ExportedSequence) -> None:
        silhouettes = self._export.silhouettes(sequence)
        self._spool.write(self._sealing.content_hash(silhouettes).encode())
        self._spool.write(packed(silhouettes))
        for digest, shape in self._models.items():
            embedding = self._export.embedding(sequence.sequence_id, digest, shape)
            self._spool.write(b"" if embedding is None else embedding.astype("<f4").tobytes())
            self._embeddings += embedding is not None

    def add(self, name: str) -> Imported:
        """Make the gallery in one transaction; raises `Conflict` when the name is taken.

        One that was compared by a scene transform, if this deployment has any, is given another.
        Sequences keep their ids when none of them is taken; otherwise all get new ones, in the same
        order, because a subject's sequences are listed by id.
        """
        about = self._export.about
        point = about.operating_point
        self._spool.rewind()
        with Session(writing(self._engine)) as session, session.begin():
            take_turns(session, _TURN)  # two of one file would find its ids free
            gallery = GalleryRow(
                id=new_id(),
                name=name,
                revision=0,
                details=about.metadata,
                operating_point=None if point is None else point.kept(),
                max_age_days=about.max_age_days,
                created_at=about.created_at,
            )
            session.add(gallery)
            try:
                session.flush()
            except IntegrityError as error:
                raise gallery_exists(name) from error
            self._sealing.require_current(session)
            subjects = 0
            for batch in in_pieces(self._export.subjects(), _AT_ONCE):
                subjects += len(batch)
                session.add_all(
                    SubjectRow(
                        gallery_id=gallery.id,
                        subject_id=subject.subject_id,
                        display_name=subject.display_name,
                        details=subject.metadata or None,
                        created_at=subject.created_at,
                    )
                    for subject in batch
                )
                session.flush()
            ids_kept = not self._any_id_taken(session)
            # A revision is read in one piece by whoever follows, so each adds only so many.
            sequences = (sequence for _, sequence in self._export.sequences())
            for revision, some in enumerate(in_pieces(sequences, _AT_ONCE), 1):
                gallery.revision = revision
                self._add_sequences(session, gallery, some, ids_kept)
            session.flush()
            if about.adapted and self._adapts:
                adaptation.queue(session, name)
            return Imported(
                gallery=GalleryRecord(
                    gallery_id=gallery.id,
                    name=name,
                    revision=gallery.revision,
                    subjects=subjects,
                    sequences=len(self._sequence_ids),
                    metadata=about.metadata,
                    operating_point=gallery.operating_point,
                    max_age_days=about.max_age_days,
                    created_at=about.created_at,
                ),
                ids_kept=ids_kept,
                embeddings=self._embeddings,
                embeddings_left=self._embeddings_left,
            )

    def _any_id_taken(self, session: Session) -> bool:
        walk_keys = self._sealing.walk_keys
        return any(
            session.scalar(select(SequenceRow.id).where(SequenceRow.id.in_(batch)).limit(1))
            # One that was erased keeps its name, or what is left of it elsewhere would be opened.
            or (walk_keys is not None and walk_keys.known(batch))
            for batch in in_pieces(self._sequence_ids, _AT_ONCE)
        )

    def _add_sequences(
        self,
        session: Session,
        gallery: GalleryRow,
        sequences: Sequence[ExportedSequence],
        ids_kept: bool,
    ) -> None:
        rows: list[SequenceRow] = []
        embeddings: list[EmbeddingRow] = []
        sequence_ids = [one.sequence_id if ids_kept else new_id() for one in sequences]
        self._sealing.begin(sequence_ids)
        for sequence_id, sequence in zip(sequence_ids, sequences, strict=True):
            content_hash, silhouettes = self._spool.read().decode(), self._spool.read()
            rows.append(
                SequenceRow(
                    id=sequence_id,
                    gallery_id=gallery.id,
                    subject_id=sequence.subject_id,
                    revision=gallery.revision,
                    frames=sequence.frames,
                    content_hash=content_hash,
                    silhouettes=self._sealing.reseal_silhouettes(sequence_id, silhouettes, None),
                    key_id=self._sealing.walks_key_id,
                    quality=sequence.quality.model_dump(),
                    details=sequence.metadata,
                    view=label(sequence.metadata.get("view")),
                    condition=label(sequence.metadata.get("condition")),
                    created_at=sequence.created_at,
                )
            )
            for digest, shape in self._models.items():
                if vector := self._spool.read():
                    embedding = np.frombuffer(vector, "<f4").reshape(shape.parts, shape.channels)
                    embeddings.append(self._sealing.seal_embedding(sequence_id, digest, embedding))
        for added in (rows, embeddings):
            session.add_all(added)
            session.flush()
        for row in (*rows, *embeddings):  # or the session would keep all of the gallery in memory
            session.expunge(row)

"""Put an export into a new gallery: checked to its last byte first, then added all or nothing.

The check unpacks every sequence and leaves it on a tape as the database will keep it, so that the
transaction, during which nobody else may write, only copies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Final, TypeVar

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.foundation.errors import Reason
from service.gallery.coverage import label
from service.gallery.records import GalleryRecord
from service.gallery.sealing import Sealing, packed, sealing_of
from service.gallery.store import embedding_row, gallery_exists
from service.gallery.tables import GalleryRow, SequenceRow, SubjectRow
from service.storage.database import new_id, writing
from service.transfer.export import SUBJECTS
from service.transfer.export_file import BrokenExport, EmbeddingShape, ExportedSequence, ExportFile

_AT_ONCE: Final = 256  # rows that are in memory; also what one revision adds
_LENGTH = struct.Struct("<I")
Item = TypeVar("Item")


class Tape:
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
class Checked:
    """What a whole export has turned out to be.

    Attributes:
        sequence_ids: of every sequence, in order.
        kept: which checkpoints' embeddings are on the tape.
        embeddings: how many these are.
        left: how many are in the file and of no use here: no model has their digest.
    """

    sequence_ids: Sequence[str]
    kept: Mapping[str, EmbeddingShape]
    embeddings: int
    left: int


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


def check(
    export: ExportFile, tape: Tape, models: Mapping[str, EmbeddingShape], sealing: Sealing
) -> Checked:
    """Read all of the export, leaving on the tape what `add` will need, plain as the export is.

    Embeddings are kept of the checkpoints in `models`, by digest.

    Raises:
        BrokenExport: something in it is not as `service.transfer.export` writes it.
        TooLarge: a sequence is over the limit.
    """
    subjects = {subject.subject_id for subject in export.subjects()}
    without = set(subjects)
    sequence_ids: list[str] = []
    embeddings = 0
    for where, sequence in export.sequences():
        if sequence.subject_id not in subjects:
            raise BrokenExport(
                f"The export is damaged or was changed: {where}: {SUBJECTS} lacks its subject",
                Reason(where, "subject_missing"),
            )
        without.discard(sequence.subject_id)
        sequence_ids.append(sequence.sequence_id)
        silhouettes = export.silhouettes(sequence)
        tape.write(sealing.content_hash(silhouettes).encode())
        tape.write(packed(silhouettes))
        for digest, shape in models.items():
            embedding = export.embedding(sequence.sequence_id, digest, shape)
            tape.write(b"" if embedding is None else embedding.astype("<f4").tobytes())
            embeddings += embedding is not None
    if without:
        raise BrokenExport(
            f"The export is damaged or was changed: {len(without)} of its subjects have no "
            "sequence.",
            Reason(SUBJECTS, "subject_without_sequences"),
        )
    left = _count_left(export, frozenset(sequence_ids), frozenset(models))
    tape.rewind()
    return Checked(sequence_ids, models, embeddings, left)


def add(engine: Engine, name: str, export: ExportFile, checked: Checked, tape: Tape) -> Imported:
    """Make the gallery in one transaction; raises `Conflict` when the name is taken.

    Sequences keep their ids when none of them is taken; otherwise all get new ones, in the same
    order, because a subject's sequences are listed by id.
    """
    about = export.about
    point = about.operating_point
    sealing = sealing_of(engine)
    with Session(writing(engine)) as session, session.begin():
        gallery = GalleryRow(
            id=new_id(),
            name=name,
            revision=0,
            details=about.metadata,
            operating_point=None if point is None else point.kept(),
            max_age_days=about.max_age_days,
            created_at=about.created_at,
        )
        _claim_name(session, gallery)
        sealing.require_current(session)
        subjects = 0
        for batch in _batches(export.subjects()):
            subjects += len(batch)
            session.add_all(
                SubjectRow(
                    gallery_id=gallery.id,
                    subject_id=subject.subject_id,
                    display_name=subject.display_name,
                    created_at=subject.created_at,
                )
                for subject in batch
            )
            session.flush()
        ids_kept = not _any_taken(session, checked.sequence_ids)
        # A revision is read in one piece by whoever follows, so each adds only so many.
        sequences = (sequence for _, sequence in export.sequences())
        for revision, batch_of_sequences in enumerate(_batches(sequences), 1):
            _add_sequences(
                session, gallery.id, revision, batch_of_sequences, checked, tape, sealing, ids_kept
            )
            gallery.revision = revision
        session.flush()
        return Imported(
            gallery=GalleryRecord(
                gallery_id=gallery.id,
                name=name,
                revision=gallery.revision,
                subjects=subjects,
                sequences=len(checked.sequence_ids),
                metadata=about.metadata,
                operating_point=gallery.operating_point,
                max_age_days=about.max_age_days,
                created_at=about.created_at,
            ),
            ids_kept=ids_kept,
            embeddings=checked.embeddings,
            embeddings_left=checked.left,
        )


def _claim_name(session: Session, gallery: GalleryRow) -> None:
    session.add(gallery)
    try:
        session.flush()
    except IntegrityError as error:
        raise gallery_exists(gallery.name) from error


def _add_sequences(
    session: Session,
    gallery_id: str,
    revision: int,
    sequences: Sequence[ExportedSequence],
    checked: Checked,
    tape: Tape,
    sealing: Sealing,
    ids_kept: bool,
) -> None:
    rows = []
    embeddings = []
    for sequence in sequences:
        sequence_id = sequence.sequence_id if ids_kept else new_id()
        rows.append(
            SequenceRow(
                id=sequence_id,
                gallery_id=gallery_id,
                subject_id=sequence.subject_id,
                revision=revision,
                frames=sequence.frames,
                content_hash=tape.read().decode(),
                silhouettes=sealing.reseal_silhouettes(sequence_id, tape.read(), None),
                key_id=sealing.key_id,
                quality=sequence.quality.model_dump(),
                details=sequence.metadata,
                view=label(sequence.metadata.get("view")),
                condition=label(sequence.metadata.get("condition")),
                created_at=sequence.created_at,
            )
        )
        for digest, shape in checked.kept.items():
            if vector := tape.read():
                embedding = np.frombuffer(vector, "<f4").reshape(shape.parts, shape.channels)
                embeddings.append(embedding_row(sequence_id, digest, embedding, sealing))
    session.add_all(rows)
    session.flush()
    session.add_all(embeddings)
    session.flush()
    for row in (*rows, *embeddings):  # or the session would hold all of the gallery
        session.expunge(row)


def _any_taken(session: Session, sequence_ids: Sequence[str]) -> bool:
    return any(
        session.scalar(select(SequenceRow.id).where(SequenceRow.id.in_(batch)).limit(1))
        for batch in _batches(iter(sequence_ids))
    )


def _count_left(export: ExportFile, known: frozenset[str], kept: frozenset[str]) -> int:
    """How many embeddings have no model here; raises `BrokenExport` for arrays of no sequence."""
    left = 0
    for sequence_id, digest in export.arrays():
        if sequence_id not in known:
            raise BrokenExport(
                f"The export is damaged or was changed: it has arrays of {sequence_id}, which is "
                "no sequence of it.",
                Reason(sequence_id, "not_listed"),
            )
        left += digest is not None and digest not in kept
    return left


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    while batch := list(islice(items, _AT_ONCE)):
        yield batch

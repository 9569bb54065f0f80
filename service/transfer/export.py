"""A whole gallery as one file: a backup, a move to another deployment, or a dataset.

A zip, in this order (an object a line in `.jsonl`; times are RFC 3339, UTC):

gallery.json                       format (1), name, metadata, max_age_days, operating_point,
                                   created_at
subjects.jsonl                     subject_id, created_at; display_name of whoever has one
sequences.jsonl                    subject_id, sequence_id, metadata, frames, quality, content_hash,
                                   created_at; in order of ids, which is that of enrolment
silhouettes/<sequence_id>.npy      uint8 [s, 64, 64]
embeddings/<digest>/<sequence_id>.npy   float32 [p, c] of that checkpoint; may be left out

`python -m training pack --format gallery` reads the same file. It holds biometric data: whoever
asks for it removes it.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Engine, and_, case, exists, select
from sqlalchemy.orm import Session

from service.foundation.errors import CutOff
from service.gallery.sealing import content_hash, sealing_of
from service.gallery.store import embedding_of, missing_gallery
from service.gallery.tables import (
    EmbeddingRow,
    ErasedSequenceRow,
    GalleryRow,
    SequenceRow,
    SubjectRow,
)

FORMAT: Final = 1
ABOUT, SUBJECTS, SEQUENCES = "gallery.json", "subjects.jsonl", "sequences.jsonl"
_PAGE = 64
_PIECE = 2**18  # bytes that are handed out at once, about
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same gallery makes the same file
_LEVEL = 1  # silhouettes shrink by far the most with the least effort
_ATTEMPTS = 5


def silhouettes_member(sequence_id: str) -> str:
    """Where a sequence's silhouettes are in the file."""
    return f"silhouettes/{sequence_id}.npy"


def embedding_member(digest: str, sequence_id: str) -> str:
    """Where what a checkpoint made of a sequence is in the file."""
    return f"embeddings/{digest}/{sequence_id}.npy"


def stream_gallery(engine: Engine, name: str, *, embeddings: bool) -> Iterator[bytes]:
    """The file in pieces, as it is made: the gallery at the revision it has now.

    It is read a page at a time, with no transaction open while whoever takes the pieces is slow, so
    neither memory nor the write-ahead log grows with the gallery.

    Raises:
        NotFound: there is no such gallery; at once.
        CutOff: while pieces are taken, before the last.
    """
    with Session(engine) as session:
        gallery = session.scalar(select(GalleryRow).where(GalleryRow.name == name))
    if gallery is None:
        raise missing_gallery(name)
    return _write(engine, gallery, embeddings)


def export_gallery(engine: Engine, name: str, path: Path) -> int:
    """Write the gallery without its embeddings to `path` and return the number of sequences.

    Nobody else may read the file. Begins again when something is erased meanwhile.

    Raises:
        NotFound: there is no such gallery.
        CutOff: again and again.
    """
    for left in reversed(range(_ATTEMPTS)):
        pieces = stream_gallery(engine, name, embeddings=False)
        try:
            with _private(path) as file:
                file.writelines(pieces)
            break
        except CutOff:
            path.unlink()
            if not left:
                raise
    with zipfile.ZipFile(path) as file:
        return sum(member.startswith("silhouettes/") for member in file.namelist())


def _private(path: Path) -> IO[bytes]:
    """A new file, or an emptied one, that nobody else may read."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
    os.fchmod(file.fileno(), 0o600)  # if it was there
    return file


class _Pieces:
    """What zipfile has written and nobody has taken yet; it cannot seek, which zipfile notices."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """There is nothing behind this to flush to."""

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return taken


def _write(engine: Engine, gallery: GalleryRow, embeddings: bool) -> Iterator[bytes]:
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w") as file:  # type: ignore[call-overload]
        file.writestr(_member(ABOUT), json.dumps(_about(gallery), ensure_ascii=False))
        for name, lines in (
            (SUBJECTS, _subjects(engine, gallery)),
            (SEQUENCES, _sequences(engine, gallery)),
        ):
            with file.open(_member(name), "w", force_zip64=True) as member:
                for line in lines:
                    member.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    if pieces.size >= _PIECE:
                        yield pieces.take()
        for name, array in _arrays(engine, gallery, embeddings):
            file.writestr(_member(name), _npy(array))
            if pieces.size >= _PIECE:
                yield pieces.take()
        _require_unchanged(engine, gallery)  # before the directory, which makes the file whole
    yield pieces.take()


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _EPOCH)
    dense = name.startswith("embeddings/")  # does not shrink
    member.compress_type = zipfile.ZIP_STORED if dense else zipfile.ZIP_DEFLATED
    member._compresslevel = _LEVEL  # type: ignore[attr-defined]
    member.external_attr = 0o600 << 16
    return member


def _about(gallery: GalleryRow) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": gallery.name,
        "metadata": gallery.details,
        "max_age_days": gallery.max_age_days,
        "operating_point": gallery.operating_point,
        "created_at": _time(gallery.created_at),
    }


def _subjects(engine: Engine, gallery: GalleryRow) -> Iterator[dict[str, Any]]:
    """Those who had a sequence at the gallery's revision."""
    last = ""
    enrolled = exists().where(
        SequenceRow.gallery_id == SubjectRow.gallery_id,
        SequenceRow.subject_id == SubjectRow.subject_id,
        SequenceRow.revision <= gallery.revision,
    )
    while True:
        query = (
            select(SubjectRow)
            .where(SubjectRow.gallery_id == gallery.id, SubjectRow.subject_id > last, enrolled)
            .order_by(SubjectRow.subject_id)
            .limit(_PAGE)
        )
        with Session(engine) as session:
            rows = session.scalars(query).all()
        if not rows:
            return
        for row in rows:
            name = {} if row.display_name is None else {"display_name": row.display_name}
            yield {"subject_id": row.subject_id, "created_at": _time(row.created_at), **name}
        last = rows[-1].subject_id


def _sequences(engine: Engine, gallery: GalleryRow) -> Iterator[dict[str, Any]]:
    sealing = sealing_of(engine)
    last = ""
    while True:
        # A hash that is keyed with a key of this deployment's says nothing elsewhere.
        keyed = case((SequenceRow.key_id.is_not(None), SequenceRow.silhouettes))
        query = select(SequenceRow, keyed).where(_after(gallery, last)).order_by(SequenceRow.id)
        with Session(engine) as session:
            rows = session.execute(query.limit(_PAGE)).all()
        if not rows:
            return
        for row, kept in rows:
            hashed = row.content_hash
            if kept is not None:
                hashed = content_hash(sealing.silhouettes(row.id, kept, row.key_id))
            yield {
                "subject_id": row.subject_id,
                "sequence_id": row.id,
                "metadata": row.details,
                "frames": row.frames,
                "quality": row.quality,
                "content_hash": hashed,
                "created_at": _time(row.created_at),
            }
        last = rows[-1][0].id


def _arrays(
    engine: Engine, gallery: GalleryRow, embeddings: bool
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    sealing = sealing_of(engine)
    last = ""
    while True:
        query = (
            select(
                SequenceRow.id,
                SequenceRow.silhouettes,
                SequenceRow.key_id,
                SequenceRow.content_hash,
            )
            .where(_after(gallery, last))
            .order_by(SequenceRow.id)
            .limit(_PAGE)
        )
        with Session(engine) as session:
            rows = session.execute(query).all()
        if not rows:
            return
        for row in rows:
            silhouettes = sealing.silhouettes(
                row.id, row.silhouettes, row.key_id, hashed=row.content_hash
            )
            yield silhouettes_member(row.id), silhouettes
        if embeddings:
            yield from _embeddings(engine, [row.id for row in rows])
        last = rows[-1].id


def _embeddings(
    engine: Engine, sequence_ids: Sequence[str]
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    query = (
        select(EmbeddingRow)
        .where(EmbeddingRow.sequence_id.in_(sequence_ids))
        .order_by(EmbeddingRow.sequence_id, EmbeddingRow.digest)
    )
    with Session(engine) as session:
        rows = session.scalars(query).all()
    sealing = sealing_of(engine)
    for row in rows:
        embedding = embedding_of(row, sealing)
        yield embedding_member(row.digest, row.sequence_id), embedding.astype("<f4")


def _after(gallery: GalleryRow, sequence_id: str) -> ColumnElement[bool]:
    return and_(
        SequenceRow.gallery_id == gallery.id,
        SequenceRow.revision <= gallery.revision,
        SequenceRow.id > sequence_id,
    )


def _require_unchanged(engine: Engine, gallery: GalleryRow) -> None:
    """Nothing of it may have gone: then every page was of one and the same state."""
    erased = exists().where(
        ErasedSequenceRow.gallery_id == gallery.id, ErasedSequenceRow.revision > gallery.revision
    )
    query = select(GalleryRow.id).where(GalleryRow.id == gallery.id, ~erased)
    with Session(engine) as session:
        if session.scalar(query) is None:
            raise CutOff("something was erased from the gallery while it was exported")


def _npy(array: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")

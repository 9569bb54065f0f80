"""A whole gallery as one file: a backup, a move to another deployment, or a dataset.

See `models.files.gallery_file` for what is in it; `python -m training pack --format gallery`
reads it, too. It holds biometric data; the caller removes it.
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
from sqlalchemy import ColumnElement, Engine, Row, Select, and_, case, exists, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from models.files.gallery_file import (
    ABOUT,
    FORMAT,
    SEQUENCES,
    SUBJECTS,
    embedding_member,
    silhouettes_member,
)
from service.foundation.errors import CutOff
from service.gallery.scenes import plain_point
from service.gallery.sealing import ErasedWalk, content_hash, sealing_of
from service.gallery.store import missing_gallery
from service.gallery.tables import (
    EmbeddingRow,
    ErasedSequenceRow,
    GalleryRow,
    SceneRow,
    SequenceRow,
    SubjectRow,
)

_PAGE: Final = 64
_PIECE: Final = 2**18  # bytes that are handed out at once, about
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the same gallery makes the same file
_LEVEL: Final = 1  # silhouettes shrink by far the most with the least effort
_ATTEMPTS: Final = 5

Arrays = Iterator[tuple[str, npt.NDArray[np.generic]]]
"""Members and what they hold."""


def stream_gallery(engine: Engine, name: str, *, embeddings: bool) -> Iterator[bytes]:
    """The file in pieces, as it is made: the gallery at the revision it has now.

    It is read a page at a time, each in a transaction of its own, so neither memory nor the
    write-ahead log grows with the gallery or with a slow reader.

    Raises:
        NotFound: there is no such gallery; at once.
        CutOff: something was erased meanwhile; while pieces are taken, before the last.
    """
    with Session(engine) as session:
        gallery = session.scalar(select(GalleryRow).where(GalleryRow.name == name))
    if gallery is None:
        raise missing_gallery(name)
    return _write(engine, gallery, embeddings)


def export_gallery(engine: Engine, name: str, path: Path) -> int:
    """Write the gallery without its embeddings to `path`; returns the number of sequences.

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
    """A new or emptied file that nobody else may read."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
    os.fchmod(file.fileno(), 0o600)  # if it existed
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
        """Nothing to do; zipfile calls it."""

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return taken


def _write(engine: Engine, gallery: GalleryRow, embeddings: bool) -> Iterator[bytes]:
    try:
        yield from _written(engine, gallery, embeddings)
    except ErasedWalk as error:
        raise CutOff("a walk was erased from the gallery while it was exported") from error


def _written(engine: Engine, gallery: GalleryRow, embeddings: bool) -> Iterator[bytes]:
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w") as file:  # type: ignore[call-overload]
        file.writestr(_member(ABOUT), _json(_about(engine, gallery)))
        for name, lines in (
            (SUBJECTS, _subjects(engine, gallery)),
            (SEQUENCES, _sequences(engine, gallery)),
        ):
            with file.open(_member(name), "w", force_zip64=True) as member:
                for line in lines:
                    member.write(_json(line) + b"\n")
                    if pieces.size >= _PIECE:
                        yield pieces.take()
        for name, array in _arrays(engine, gallery, embeddings):
            buffer = io.BytesIO()
            np.save(buffer, array)
            file.writestr(_member(name), buffer.getvalue())
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


def _about(engine: Engine, gallery: GalleryRow) -> dict[str, Any]:
    """What is exported of the gallery itself.

    Its scene transforms are not: who imports it has them fitted anew. So its operating point is
    that which holds without.
    """
    with Session(engine) as session:
        point = gallery.operating_point
        if point is not None:
            point = plain_point(session, gallery.id, point)
        adapted = session.scalar(
            select(SceneRow.digest).where(SceneRow.gallery_id == gallery.id).limit(1)
        )
    return {
        "format": FORMAT,
        "name": gallery.name,
        "metadata": gallery.details,
        "max_age_days": gallery.max_age_days,
        "operating_point": point,
        "created_at": _time(gallery.created_at),
        **({} if adapted is None else {"adapted": True}),
    }


def _subjects(engine: Engine, gallery: GalleryRow) -> Iterator[dict[str, Any]]:
    """Those who had a sequence at the gallery's revision."""
    enrolled = exists().where(
        SequenceRow.gallery_id == SubjectRow.gallery_id,
        SequenceRow.subject_id == SubjectRow.subject_id,
        SequenceRow.revision <= gallery.revision,
    )
    query = select(SubjectRow).where(SubjectRow.gallery_id == gallery.id, enrolled)
    for rows in _pages(engine, query, SubjectRow.subject_id):
        for row, subject_id in rows:
            said = {"display_name": row.display_name, "metadata": row.details}
            yield {
                "subject_id": subject_id,
                "created_at": _time(row.created_at),
                **{name: value for name, value in said.items() if value is not None},
            }


def _sequences(engine: Engine, gallery: GalleryRow) -> Iterator[dict[str, Any]]:
    sealing = sealing_of(engine)
    # A hash that is keyed with a key of this deployment's says nothing elsewhere.
    keyed = case((SequenceRow.key_id.is_not(None), SequenceRow.silhouettes))
    query = select(SequenceRow, keyed).where(_exported(gallery))
    for rows in _pages(engine, query, SequenceRow.id):
        for row, kept, sequence_id in rows:
            hashed = row.content_hash
            if kept is not None:
                hashed = content_hash(sealing.silhouettes(sequence_id, kept, row.key_id))
            yield {
                "subject_id": row.subject_id,
                "sequence_id": sequence_id,
                "metadata": row.details,
                "frames": row.frames,
                "quality": row.quality,
                "content_hash": hashed,
                "created_at": _time(row.created_at),
            }


def _arrays(engine: Engine, gallery: GalleryRow, embeddings: bool) -> Arrays:
    sealing = sealing_of(engine)
    query = select(SequenceRow.silhouettes, SequenceRow.key_id, SequenceRow.content_hash)
    for rows in _pages(engine, query.where(_exported(gallery)), SequenceRow.id):
        for kept, key_id, hashed, sequence_id in rows:
            silhouettes = sealing.silhouettes(sequence_id, kept, key_id, hashed=hashed)
            yield silhouettes_member(sequence_id), silhouettes
        if embeddings:
            yield from _embeddings(engine, [sequence_id for *_, sequence_id in rows])


def _embeddings(engine: Engine, sequence_ids: Sequence[str]) -> Arrays:
    query = (
        select(EmbeddingRow)
        .where(EmbeddingRow.sequence_id.in_(sequence_ids))
        .order_by(EmbeddingRow.sequence_id, EmbeddingRow.digest)
    )
    with Session(engine) as session:
        rows = session.scalars(query).all()
    sealing = sealing_of(engine)
    for row in rows:
        yield embedding_member(row.digest, row.sequence_id), sealing.embedding(row).astype("<f4")


def _pages(
    engine: Engine, query: Select[*tuple[Any, ...]], key: InstrumentedAttribute[str]
) -> Iterator[Sequence[Row[*tuple[Any, ...]]]]:
    """Pages of a query's rows, in order of the key, which is added to each row at its end."""
    ordered = query.add_columns(key).order_by(key).limit(_PAGE)
    last = ""
    while True:
        with Session(engine) as session:
            rows = session.execute(ordered.where(key > last)).all()
        if not rows:
            return
        yield rows
        last = rows[-1][-1]


def _exported(gallery: GalleryRow) -> ColumnElement[bool]:
    return and_(SequenceRow.gallery_id == gallery.id, SequenceRow.revision <= gallery.revision)


def _require_unchanged(engine: Engine, gallery: GalleryRow) -> None:
    """Raise `CutOff` if anything was erased meanwhile: else every page shows one state."""
    erased = exists().where(
        ErasedSequenceRow.gallery_id == gallery.id, ErasedSequenceRow.revision > gallery.revision
    )
    query = select(GalleryRow.id).where(GalleryRow.id == gallery.id, ~erased)
    with Session(engine) as session:
        if session.scalar(query) is None:
            raise CutOff("something was erased from the gallery while it was exported")


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")

"""Write a gallery to one file, in the form that `python -m training pack --format gallery` reads.

A zip, not compressed (silhouettes are read again at once), of `gallery.json`, `sequences.jsonl`
(`{"subject_id", "sequence_id", "metadata"}` a line) and `silhouettes/<sequence_id>.npy` (uint8
[s, 64, 64]). The file holds biometric data, never encrypted: whoever asks for it removes it.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from service.gallery.sealing import sealing_of
from service.gallery.store import missing_gallery
from service.gallery.tables import GalleryRow, SequenceRow

_PAGE = 64


def export_gallery(engine: Engine, name: str, path: Path) -> int:
    """Write the gallery to `path` and return the number of sequences; raises `NotFound`.

    Read a page at a time, up to the revision at which the export began, so neither memory nor the
    database's write-ahead log grows with the gallery. A sequence that is erased meanwhile is left
    out unless its page was already written.
    """
    with Session(engine) as session:
        gallery = session.scalar(select(GalleryRow).where(GalleryRow.name == name))
    if gallery is None:
        raise missing_gallery(name)
    sealing = sealing_of(engine)
    lines: list[str] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        about = {"name": gallery.name, "revision": gallery.revision}
        file.writestr("gallery.json", json.dumps(about))
        last = ""
        while page := _page(engine, gallery, last):
            for row, kept in page:
                last = row.id
                entry = {
                    "subject_id": row.subject_id,
                    "sequence_id": row.id,
                    "metadata": row.details,
                }
                lines.append(json.dumps(entry))
                buffer = io.BytesIO()
                np.save(buffer, sealing.silhouettes(row.id, kept, row.key_id))
                file.writestr(f"silhouettes/{row.id}.npy", buffer.getvalue())
        file.writestr("sequences.jsonl", "".join(f"{line}\n" for line in lines))
    return len(lines)


def _page(engine: Engine, gallery: GalleryRow, after: str) -> list[tuple[SequenceRow, bytes]]:
    query = (
        select(SequenceRow, SequenceRow.silhouettes)
        .where(
            SequenceRow.gallery_id == gallery.id,
            SequenceRow.revision <= gallery.revision,
            SequenceRow.id > after,
        )
        .order_by(SequenceRow.id)
        .limit(_PAGE)
    )
    with Session(engine) as session:
        return [(row, kept) for row, kept in session.execute(query)]

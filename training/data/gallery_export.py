"""The sequences of an exported gallery, see `models.files.gallery_file`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from models.files.array_file import read_array
from models.files.gallery_file import (
    SEQUENCES,
    BrokenGalleryFile,
    GalleryFile,
    silhouettes_member,
)
from training.data.pack import SIDE

_MOST_FRAMES: Final = 10_000
_MOST_SEQUENCE_BYTES: Final = _MOST_FRAMES * SIDE * SIDE + 4096  # and the header
_MOST_BYTES: Final = 256 * 2**30
_ID: Final = r"^[^/\\\x00-\x1f]{1,256}$"


class ExportedSequence(BaseModel):
    """What packing needs of a line of `sequences.jsonl`."""

    model_config = ConfigDict(extra="ignore")

    subject_id: str = Field(pattern=_ID)
    sequence_id: str = Field(pattern=_ID)
    metadata: dict[str, Any] = Field(default_factory=dict)


def is_gallery_export(path: Path) -> bool:
    """Whether a file looks like an exported gallery."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return SEQUENCES in file.NameToInfo


class GalleryExport(GalleryFile):
    """An open exported gallery, whose sequences are packed."""

    def __init__(self, path: Path) -> None:
        """Open the file and check what its directory promises.

        Raises:
            BrokenGalleryFile: not a zip, not an export, or larger than any gallery.
        """
        super().__init__(path)
        if sum(member.file_size for member in self.members.values()) > _MOST_BYTES:
            self.close()
            raise BrokenGalleryFile("it has more bytes than any gallery has")

    def sequences(self) -> Iterator[ExportedSequence]:
        """The sequences, each once, whose silhouettes are in the file.

        Raises:
            BrokenGalleryFile: a line is wrong, or silhouettes are missing.
        """
        seen: set[str] = set()
        for where, sequence in self.lines(SEQUENCES, ExportedSequence):
            if sequence.sequence_id in seen:
                raise BrokenGalleryFile(f"{sequence.sequence_id} a second time", where)
            if silhouettes_member(sequence.sequence_id) not in self.members:
                raise BrokenGalleryFile(f"it has no {silhouettes_member(sequence.sequence_id)}")
            seen.add(sequence.sequence_id)
            yield sequence

    def silhouettes(self, sequence_id: str) -> npt.NDArray[np.uint8]:
        """Silhouettes uint8 [s, 64, 64] of a sequence.

        Raises:
            BrokenGalleryFile: the member is not such an array.
        """
        name = silhouettes_member(sequence_id)
        data = self.read(name, _MOST_SEQUENCE_BYTES)
        try:
            return np.asarray(read_array(data, np.uint8, (None, SIDE, SIDE)), np.uint8)
        except ValueError as error:
            raise BrokenGalleryFile(str(error), name) from error

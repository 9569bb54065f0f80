"""The file that the service exports of a gallery, read with suspicion.

A zip of `gallery.json`, `sequences.jsonl` (`{"subject_id", "sequence_id", "metadata"}` a line) and
`silhouettes/<sequence_id>.npy` (uint8 [s, 64, 64]). Nothing is extracted to disk.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.files.array_file import read_array
from training.data.pack import SIDE

_INDEX = "sequences.jsonl"
_MOST_FRAMES = 10_000
_MOST_SEQUENCE_BYTES = _MOST_FRAMES * SIDE * SIDE + 4096  # and the header
_MOST_INDEX_BYTES = 512 * 2**20
_MOST_BYTES = 256 * 2**30
_ID = r"^[^/\\\x00-\x1f]{1,256}$"


class BrokenExport(ValueError):
    """A file that is not a gallery export, or half of one. The text says which member is wrong."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore")

    subject_id: str = Field(pattern=_ID)
    sequence_id: str = Field(pattern=_ID)
    metadata: dict[str, Any] = Field(default_factory=dict)


class ExportedSequence(NamedTuple):
    """One line of the index."""

    subject_id: str
    sequence_id: str
    metadata: dict[str, Any]


class GalleryExport:
    """An open export. Thread-safe; to be closed, or used in a `with`."""

    def __init__(self, path: Path) -> None:
        """Open the file and check what its directory promises.

        Raises:
            BrokenExport: not a zip, not an export, or larger than any gallery.
        """
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise BrokenExport(f"not a zip: {error}") from error
        members = self._zip.infolist()
        self._members = {member.filename: member for member in members}
        for name in ("gallery.json", _INDEX):
            if name not in self._members:
                self.close()
                raise BrokenExport(f"not a gallery export: it has no {name}")
        if len(self._members) != len(members) or sum(m.file_size for m in members) > _MOST_BYTES:
            self.close()
            raise BrokenExport("members twice, or more bytes than any gallery has")

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether the file looks like an export."""
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as file:
            return _INDEX in file.NameToInfo

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def sequences(self) -> Iterator[ExportedSequence]:
        """The lines of the index, checked: each sequence once, and its silhouettes there.

        Raises:
            BrokenExport: a line is wrong.
        """
        seen: set[str] = set()
        for number, line in enumerate(self._read(_INDEX, _MOST_INDEX_BYTES).splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = _Line.model_validate_json(line)
            except ValidationError as error:
                detail = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in detail["loc"])
                raise BrokenExport(f"{_INDEX} line {number}: {where} {detail['msg']}") from error
            if entry.sequence_id in seen:
                raise BrokenExport(f"{_INDEX} line {number}: {entry.sequence_id} a second time")
            if _member(entry.sequence_id) not in self._members:
                raise BrokenExport(f"it has no {_member(entry.sequence_id)}")
            seen.add(entry.sequence_id)
            yield ExportedSequence(entry.subject_id, entry.sequence_id, entry.metadata)

    def silhouettes(self, sequence_id: str) -> npt.NDArray[np.uint8]:
        """Silhouettes uint8 [s, 64, 64] of a sequence.

        Raises:
            BrokenExport: the member is not such an array.
        """
        name = _member(sequence_id)
        try:
            return np.asarray(
                read_array(self._read(name, _MOST_SEQUENCE_BYTES), np.uint8, (None, SIDE, SIDE))
            )
        except ValueError as error:
            raise BrokenExport(f"{name}: {error}") from error

    def _read(self, name: str, most: int) -> bytes:
        member = self._members[name]
        if member.file_size > most:
            raise BrokenExport(f"{name}: {member.file_size} bytes, at most {most} are allowed")
        try:
            return self._zip.read(member)
        except Exception as error:  # zlib, lzma, bz2 and zipfile have no common error
            raise BrokenExport(f"{name} cannot be read: {error}") from error


def _member(sequence_id: str) -> str:
    return f"silhouettes/{sequence_id}.npy"

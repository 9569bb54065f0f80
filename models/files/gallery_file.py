"""The format of an exported gallery, and a reader that trusts nothing in it.

A gallery is exported as a zip with these members, in this order (`.jsonl`: one JSON object a line):

gallery.json                            format (1), name, metadata, max_age_days, operating_point,
                                        created_at
subjects.jsonl                          subject_id, created_at; display_name and metadata if it has
                                        them
sequences.jsonl                         subject_id, sequence_id, metadata, frames, quality,
                                        content_hash, created_at; in order of ids, that of enrolment
silhouettes/<sequence_id>.npy           uint8 [s, 64, 64]
embeddings/<digest>/<sequence_id>.npy   float32 [p, c] of that checkpoint; may be left out

Times are RFC 3339, UTC. `service.transfer.export` writes the file; `python -m training pack` and
the service's import read it. Imports neither torch nor numpy: arrays are returned as the bytes of
a `.npy` file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Self, TypeVar

from pydantic import BaseModel, ValidationError

FORMAT: Final = 1
ABOUT: Final = "gallery.json"
SUBJECTS: Final = "subjects.jsonl"
SEQUENCES: Final = "sequences.jsonl"
LONGEST_LINE: Final = 256 * 2**10  # bytes
MOST_LIST_BYTES: Final = 512 * 2**20  # of a `.jsonl` member

Record = TypeVar("Record", bound=BaseModel)


def silhouettes_member(sequence_id: str) -> str:
    """Name of the member that holds a sequence's silhouettes."""
    return f"silhouettes/{sequence_id}.npy"


def embedding_member(digest: str, sequence_id: str) -> str:
    """Name of the member that holds the embedding of a sequence by a checkpoint."""
    return f"embeddings/{digest}/{sequence_id}.npy"


def lines(file: zipfile.ZipFile, member: str) -> Iterator[bytes]:
    """A list's lines; one that is cut off or longer than `LONGEST_LINE` ends without a newline.

    Raises whatever zipfile and zlib raise for a member that cannot be unpacked.
    """
    with file.open(member) as opened:
        while line := opened.readline(LONGEST_LINE):
            yield line


def exported_subjects(path: Path) -> dict[str, str]:
    """The subject of each sequence, by the sequence's id, in an export that can be trusted."""
    with zipfile.ZipFile(path) as file:
        records = map(json.loads, lines(file, SEQUENCES))
        return {record["sequence_id"]: record["subject_id"] for record in records}


class BrokenGalleryFile(ValueError):
    """A file that is not an exported gallery, or a damaged one.

    Attributes:
        where: the member at fault, with the line in a list; empty for the file as a whole.
        reason: what is wrong with it.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.where = where
        self.reason = reason


class GalleryFile:
    """An open exported gallery. Thread-safe. Close it, or use it in a `with`.

    Attributes:
        members: the zip's members by name.
    """

    def __init__(self, file: Path | IO[bytes]) -> None:
        """Open a file; a file object stays open when the gallery is closed.

        Raises:
            BrokenGalleryFile: the file is no zip, or not one of an exported gallery.
        """
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise BrokenGalleryFile(f"not a zip: {error}") from error
        listed = self._zip.infolist()
        self.members = {member.filename: member for member in listed}
        for name in (ABOUT, SEQUENCES):
            if name not in self.members:
                self.close()
                raise BrokenGalleryFile(f"not a gallery export: it has no {name}")
        if len(self.members) != len(listed):
            self.close()
            raise BrokenGalleryFile("it has two members of one name")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the zip."""
        self._zip.close()

    def lines(self, name: str, kind: type[Record]) -> Iterator[tuple[str, Record]]:
        """The records of a `.jsonl` member, each with its place in the file for messages.

        Empty lines are skipped.

        Raises:
            BrokenGalleryFile: the member is missing or too large, or a line is not of this kind.
        """
        member = self._member(name, MOST_LIST_BYTES)
        number, where = 0, name
        try:
            for line in lines(self._zip, member.filename):
                number += 1
                where = f"{name} line {number}"
                if len(line) == LONGEST_LINE:
                    raise BrokenGalleryFile("it is too long", where)
                if line.strip():
                    yield where, kind.model_validate_json(line)
        except ValidationError as error:
            detail = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in detail["loc"])
            raise BrokenGalleryFile(f"{field} {detail['msg']}".strip(), where) from error
        except BrokenGalleryFile:
            raise
        except Exception as error:  # zlib, lzma, bz2 and zipfile have no common error
            raise BrokenGalleryFile("it cannot be unpacked", name) from error

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a member.

        Raises:
            BrokenGalleryFile: the member is missing, damaged, or larger than `most` bytes.
        """
        member = self._member(name, most)
        try:
            return self._zip.read(member)
        except Exception as error:  # zlib, lzma, bz2 and zipfile have no common error
            raise BrokenGalleryFile("it cannot be unpacked", name) from error

    def _member(self, name: str, most: int) -> zipfile.ZipInfo:
        member = self.members.get(name)
        if member is None:
            raise BrokenGalleryFile(f"it has no {name}")
        if member.file_size > most:
            raise BrokenGalleryFile(
                f"{member.file_size} bytes, at most {most} are allowed", where=name
            )
        return member

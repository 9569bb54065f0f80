"""A gallery's export as a client sent it: nothing in it is trusted or extracted to disk.

It may hold only the members of `models.files.gallery_file`, under exactly those names. What
each unpacks to is bounded before it is read, and every sequence must hash to what its line says.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import count
from typing import IO, Annotated, Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from models.files.array_file import read_array
from models.files.gallery_file import (
    ABOUT,
    FORMAT,
    LONGEST_LINE,
    SEQUENCES,
    SUBJECTS,
    embedding_member,
    lines,
    silhouettes_member,
)
from models.silhouettes.members import shown
from service.foundation.errors import Invalid, Malformed, Reason, TooLarge
from service.gallery.fields import (
    DisplayName,
    GalleryName,
    MaxAgeDays,
    SubjectId,
    UtcTime,
    check_metadata,
)
from service.gallery.operating_point import OperatingPoint
from service.gallery.records import Embedding, Silhouettes
from service.gallery.sealing import SIDE, content_hash
from service.storage.database import now

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ARRAY = re.compile(rf"(?:silhouettes|embeddings/(?P<digest>[0-9a-f]{{64}}))/(?P<id>{_UUID})\.npy")
_MOST_DIRECTORY_BYTES = 32 * 2**20  # zipfile reads it whole: about 120,000 sequences
_ENTRY = b"PK\x01\x02"
_SMALLEST_ENTRY = 90  # bytes, on the whole: 46 and a name such as silhouettes/ID.npy
_OTHER_ENTRIES = 8  # whose names are shorter
_MOST_EXPANSION = 200  # walks shrink by about 30
_SMALL_BYTES = 16 * 2**20  # which may expand as it likes
_MOST_LIST_BYTES = 512 * 2**20
_HEADER_BYTES = 4096  # of an array
_MOST_VALUES = 2**20  # of an embedding
_CLOCKS_DIFFER = timedelta(days=1)
DAMAGED = "The export is damaged or was changed"
_END, _LOCATOR, _END_64 = (
    struct.Struct("<4sHHHHIIH"),
    struct.Struct("<4sIQI"),
    struct.Struct("<4sQHHIIQQQQ"),
)


class BrokenExport(Malformed):
    """A file that is not a gallery's export, or one that somebody changed."""

    slug, title = "malformed-export", "The file is not a gallery's export"


class _Record(BaseModel):
    # Strict, because a guessed value would not be exported again as it was imported.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AboutGallery(_Record):
    """gallery.json."""

    format: Literal[1]
    name: GalleryName
    metadata: dict[str, Any]
    max_age_days: MaxAgeDays | None
    operating_point: OperatingPoint | None
    created_at: UtcTime
    adapted: bool = False  # by a scene transform, which is no part of the export


class ExportedSubject(_Record):
    """A line of subjects.jsonl."""

    subject_id: SubjectId
    created_at: UtcTime
    display_name: DisplayName | None = None
    metadata: dict[str, Any] | None = None


_Code = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,64}$")]


class _Quality(_Record):
    score: Annotated[float, Field(ge=0, le=1)]
    issues: Annotated[list[_Code], Field(max_length=32)]
    frames_in: Annotated[int, Field(ge=0)]
    dropped: Annotated[dict[_Code, int], Field(max_length=32)]


class ExportedSequence(_Record):
    """A line of sequences.jsonl."""

    subject_id: SubjectId
    sequence_id: Annotated[str, StringConstraints(pattern=rf"^{_UUID}$")]
    metadata: dict[str, Any]
    frames: Annotated[int, Field(ge=1)]
    quality: _Quality
    content_hash: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    created_at: UtcTime


_Number = TypeVar("_Number", np.uint8, np.float32)
_Line = TypeVar("_Line", ExportedSubject, ExportedSequence)


class EmbeddingShape(NamedTuple):
    """What a checkpoint makes of a sequence: float32 [parts, channels]; read from its card."""

    parts: int
    channels: int


class ExportFile:
    """An open export; to be closed, or used in a `with`. The file itself stays open."""

    def __init__(self, file: IO[bytes], *, max_frames: int) -> None:
        """Check the file's directory, and read `gallery.json`.

        Raises:
            BrokenExport: not a zip, or not one of ours.
            TooLarge: more sequences than can be imported, or a bomb.
        """
        self._max_frames = max_frames
        size = _check_directory(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # zipfile has no common error over broken input
            raise _no_zip() from error
        try:
            self._members = _check_members(self._zip.infolist(), size)
            self.about = self._read_about()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the zip."""
        self._zip.close()

    def subjects(self) -> Iterator[ExportedSubject]:
        """The subjects, each once; raises `BrokenExport`."""
        seen: set[str] = set()
        for where, subject in self._lines(SUBJECTS, ExportedSubject):
            if subject.subject_id in seen:
                raise broken(where, "a subject a second time")
            seen.add(subject.subject_id)
            _check_metadata(where, subject.metadata or {})
            yield subject

    def sequences(self) -> Iterator[tuple[str, ExportedSequence]]:
        """Each sequence once, after the place of its line; raises `BrokenExport`."""
        seen: set[str] = set()
        for where, sequence in self._lines(SEQUENCES, ExportedSequence):
            if sequence.sequence_id in seen:
                raise broken(where, "a sequence a second time")
            seen.add(sequence.sequence_id)
            _check_metadata(where, sequence.metadata)
            yield where, sequence

    def arrays(self) -> Iterator[tuple[str, str | None]]:
        """Each array's sequence id, and its checkpoint's digest (None: silhouettes)."""
        for name in self._members:
            if found := _ARRAY.fullmatch(name):
                yield found["id"], found["digest"]

    def silhouettes(self, sequence: ExportedSequence) -> Silhouettes:
        """A sequence's silhouettes, uint8 [s, 64, 64], which are those that its line describes.

        Raises:
            BrokenExport: they are not.
            TooLarge: more frames than are taken here.
        """
        name = silhouettes_member(sequence.sequence_id)
        if sequence.frames > self._max_frames:
            raise TooLarge(
                f"A sequence has {sequence.frames} frames; this service takes {self._max_frames} "
                "(GAITID_MAX_FRAMES).",
                Reason(name, "too_many_frames"),
            )
        most = sequence.frames * SIDE * SIDE
        silhouettes = self._array(name, most, np.uint8, (sequence.frames, SIDE, SIDE))
        if content_hash(silhouettes) != sequence.content_hash:
            raise broken(name, f"its frames are not those that {SEQUENCES} has the hash of")
        return silhouettes

    def embedding(self, sequence_id: str, digest: str, shape: EmbeddingShape) -> Embedding | None:
        """What the checkpoint made of a sequence, float32 [p, c]; None if the file lacks it.

        Raises:
            BrokenExport: it is not what this checkpoint makes.
        """
        name = embedding_member(digest, sequence_id)
        if name not in self._members:
            return None
        shaped = (shape.parts, shape.channels)
        embedding = self._array(name, 4 * _MOST_VALUES, np.float32, shaped)
        if not np.isfinite(embedding).all():
            raise broken(name, "it holds numbers that are not finite")
        return embedding

    def _read_about(self) -> AboutGallery:
        try:
            about = AboutGallery.model_validate_json(self._read(ABOUT, LONGEST_LINE))
            check_metadata(about.metadata)
            point = about.operating_point
            if point is not None and point.scene is not None:
                raise ValueError("its operating point is of a scene transform")
            json.dumps(None if point is None else point.kept(), allow_nan=False)
        except ValidationError as error:
            raise broken(ABOUT, _first(error)) from error
        except (Invalid, ValueError) as error:
            raise broken(ABOUT, str(error)) from error
        _check_time(ABOUT, about.created_at)
        return about

    def _lines(self, name: str, kind: type[_Line]) -> Iterator[tuple[str, _Line]]:
        if self._members[name].file_size > _MOST_LIST_BYTES:
            raise TooLarge(
                f"{name} is larger than {_MOST_LIST_BYTES} bytes.", Reason(name, "too_large")
            )
        left = lines(self._zip, name)
        for number in count(1):
            with _unpacking(name):
                line = next(left, None)
            if line is None:
                return
            where = f"{name} line {number}"
            if not line.endswith(b"\n"):
                raise broken(where, "it is cut off, or too long")
            try:
                record = kind.model_validate_json(line)
            except ValidationError as error:
                raise broken(where, _first(error)) from error
            _check_time(where, record.created_at)
            yield where, record

    def _array(
        self, name: str, most: int, dtype: type[_Number], shape: tuple[int, ...]
    ) -> npt.NDArray[_Number]:
        try:
            data = self._read(name, most + _HEADER_BYTES)
            return np.asarray(read_array(data, np.dtype(dtype).newbyteorder("<"), shape), dtype)
        except ValueError as error:
            raise broken(name, str(error)) from error

    def _read(self, name: str, most: int) -> bytes:
        member = self._members.get(name)
        if member is None:
            raise broken(name, "it is missing")
        if member.file_size > most:
            raise broken(name, f"{member.file_size} bytes, at most {most} are expected")
        with _unpacking(name):
            return self._zip.read(member)


@contextmanager
def _unpacking(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zlib and zipfile have no common error over broken input
        raise broken(name, "it cannot be unpacked") from error


def _check_directory(file: IO[bytes]) -> int:
    """The file's size, once its directory is known to be small enough to be read.

    zipfile takes the directory into memory whatever its size and makes an object of each member,
    while which everything else stands still now and then. Its place is in the last bytes of the
    file, which are those of a zip without a comment, as ours are.
    """
    size = file.seek(0, 2)
    if size < _END.size:
        raise _no_zip()
    file.seek(size - _END.size)
    end = _END.unpack(file.read(_END.size))
    length, comment, at = end[5], end[7], size - _END.size
    if end[0] != b"PK\x05\x06" or comment:
        raise _no_zip()
    longer = _END.size + _LOCATOR.size + _END_64.size
    if size >= longer:
        file.seek(size - longer)
        end_64 = _END_64.unpack(file.read(_END_64.size))
        locator = _LOCATOR.unpack(file.read(_LOCATOR.size))
        if locator[0] == b"PK\x06\x07":
            if end_64[0] != b"PK\x06\x06" or locator[2] != size - longer:
                raise _no_zip()
            length, at = end_64[8], size - longer
    if length > _MOST_DIRECTORY_BYTES:
        raise TooLarge(
            "The file holds more sequences than can be imported at once.",
            Reason("body", "too_many_sequences"),
        )
    file.seek(max(0, at - length))
    if file.read(length).count(_ENTRY) > _OTHER_ENTRIES + length // _SMALLEST_ENTRY:
        raise _no_zip()  # more members than the directory of an export has room for
    return size


def _check_members(members: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """Members by name: only ours, each once, and no bomb."""
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename
        if name not in (ABOUT, SUBJECTS, SEQUENCES) and not _ARRAY.fullmatch(name):
            raise broken(shown(name), "no export has a member of this name")
        if name in found:
            raise broken(name, "it is there a second time")
        if member.flag_bits & 0x1 or member.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise broken(name, "it is encrypted, or packed in a way that exports are not")
        found[name] = member
    for name in (ABOUT, SUBJECTS, SEQUENCES):
        if name not in found:
            raise broken(name, "it is missing")
    if sum(member.file_size for member in members) > max(_MOST_EXPANSION * size, _SMALL_BYTES):
        raise TooLarge(
            f"The file unpacks to more than {_MOST_EXPANSION} times its size, which no export "
            "does.",
            Reason("body", "unpacks_to_too_much"),
        )
    return found


def _check_metadata(where: str, metadata: dict[str, Any]) -> None:
    try:
        check_metadata(metadata)
    except Invalid as error:
        raise broken(where, str(error)) from error


def _check_time(where: str, at: datetime) -> None:
    """A time in the future would keep a sequence from growing too old."""
    if at > now() + _CLOCKS_DIFFER:
        raise broken(where, "created_at lies in the future")


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(shown(str(part)) for part in detail["loc"])
    if where == "format":
        return f"its format is not {FORMAT}, the one that this version reads"
    return f"{where} {detail['msg']}".strip()


def _no_zip() -> BrokenExport:
    return BrokenExport(
        "Send a file that GET /galleries/{gallery}/export made, whole and as it is.",
        Reason("body", "not_an_export"),
    )


def broken(where: str, reason: str) -> BrokenExport:
    """The error for one place in the export."""
    return BrokenExport(f"{DAMAGED}: {where}: {reason}", Reason(where, reason))

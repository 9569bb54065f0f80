"""The pack: all silhouettes of a dataset in one memory-mapped file, and an index of its sequences.

A pack is a folder (by custom `NAME.pack`):

    frames.bin       every frame of every sequence, one after the other, 64 x 64 pixels each: one
                     bit a pixel when the pack is `binary` (512 bytes a frame, most significant bit
                     first, rows from the top), one byte a pixel when it is `grey` (4096 bytes)
    pose.bin         optional, frame by frame as those: a map of the limbs and one of the joints, 64
                     x 64 pixels each, one byte a pixel (8192 bytes a frame)
    index.json       encoding, number of frames, content hash, whether there are pose maps, and one
                     record a sequence
    partition.json   optional, as the field has it: {"TRAIN_SET": [subject, …], "TEST_SET": […]},
                     for some datasets with {"PROBE_SET": ["subject-condition-view", …]} or
                     {"GALLERY_SET": […]}

It is written beside its place and renamed into it when it is complete, so a folder that opens is
whole. The content hash covers the frames, pose maps and records, not the partition.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from models.files.disk import sync

SIDE = 64
"""Rows and columns of every silhouette in a pack."""

Encoding = Literal["binary", "grey"]
ROW_BYTES: dict[Encoding, int] = {"binary": SIDE * SIDE // 8, "grey": SIDE * SIDE}

POSE_MAPS = 2
"""Of each frame, where a pack has any: limbs, joints."""
POSE_BYTES = POSE_MAPS * SIDE * SIDE

_FORMAT = "gaitid-pack-1"
_CHUNK_FRAMES = 4096
Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


class PackError(ValueError):
    """A folder that is not a pack, half of one, or silhouettes that do not fit into one."""


@dataclass(frozen=True, slots=True)
class SequenceRecord:
    """One sequence of a pack: whose walk, in which condition, from which view, where it lies.

    `metadata` is free (JSON values); `first_frame` counts frames from the start of `frames.bin`.
    """

    subject: str
    condition: str
    view: str
    first_frame: NonNegativeInt
    frames: PositiveInt
    metadata: Mapping[str, Any] = field(default_factory=dict)


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["gaitid-pack-1"]
    encoding: Encoding
    frames: PositiveInt
    pose_maps: bool = False
    content_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    sequences: tuple[SequenceRecord, ...] = Field(min_length=1)


class Partition(BaseModel):
    """Who is trained on and who is tested on: the field's `TRAIN_SET` and `TEST_SET`.

    Where the field lists the test's probes (`PROBE_SET`) or its gallery (`GALLERY_SET`), `probes`
    and `gallery` are those, each as `subject-condition-view`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    train: tuple[str, ...] = Field(alias="TRAIN_SET")
    test: tuple[str, ...] = Field(alias="TEST_SET")
    probes: tuple[str, ...] | None = Field(default=None, alias="PROBE_SET")
    gallery: tuple[str, ...] | None = Field(default=None, alias="GALLERY_SET")

    @classmethod
    def load(cls, path: Path) -> Partition:
        """Read a partition file.

        Raises:
            PackError: it cannot be read, is no partition, or a subject is in both sets.
        """
        try:
            partition = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise PackError(f"{path}: {error.strerror}") from error
        except ValidationError as error:
            raise PackError(f"{path}: not a partition: {_first(error)}") from error
        both = sorted(set(partition.train) & set(partition.test))
        if both:
            raise PackError(f"{path}: {both[0]} is in TRAIN_SET and in TEST_SET")
        return partition

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        text = json.dumps(
            self.model_dump(by_alias=True, exclude_none=True), ensure_ascii=False, indent=1
        )
        _replace(path, text.encode() + b"\n")


def encode_frames(silhouettes: Bytes, encoding: Encoding) -> Bytes:
    """Silhouettes uint8 [s, 64, 64] as rows of a pack, uint8 [s, 512] or [s, 4096].

    `binary` keeps what is 128 or more.
    """
    flat = silhouettes.reshape(len(silhouettes), SIDE * SIDE)
    return np.packbits(flat >= 128, axis=-1) if encoding == "binary" else flat


def decode_frames(rows: Bytes, encoding: Encoding) -> Bytes:
    """Rows of a pack, uint8 [..., 512] or [..., 4096], as silhouettes uint8 [..., 64, 64]."""
    if encoding == "binary":
        rows = np.unpackbits(rows, axis=-1) * np.uint8(255)
    return rows.reshape(*rows.shape[:-1], SIDE, SIDE)


class Pack:
    """A packed dataset, or some sequences of one. Opened with `Pack.open`; reading is thread-safe.

    Attributes:
        path: the folder.
        encoding: `binary` or `grey`.
        sequences: one record a sequence.
        subjects: ids in code-point order; a label is an index into this tuple.
        labels: int64 [n], the label of each sequence.
        first_frames: int64 [n], the row of each sequence's first frame.
        lengths: int64 [n], the number of frames of each sequence.
        content_hash: sha256 over frames and records of the whole file, also in a subset of it.
        has_pose: whether every frame has pose maps.
        partition: train and test subjects, when the folder has them.
    """

    def __init__(
        self,
        path: Path,
        encoding: Encoding,
        rows: Bytes,
        sequences: Sequence[SequenceRecord],
        content_hash: str,
        partition: Partition | None,
        pose_rows: Bytes | None = None,
    ) -> None:
        self.path = path
        self.encoding = encoding
        self.sequences = tuple(sequences)
        self.content_hash = content_hash
        self.partition = partition
        self.subjects = tuple(sorted({record.subject for record in self.sequences}))
        label = {subject: i for i, subject in enumerate(self.subjects)}
        self.labels: Indices = np.array([label[r.subject] for r in self.sequences], np.int64)
        self.first_frames: Indices = np.array([r.first_frame for r in self.sequences], np.int64)
        self.lengths: Indices = np.array([r.frames for r in self.sequences], np.int64)
        self._rows = rows
        self._pose_rows = pose_rows
        self.has_pose = pose_rows is not None

    @classmethod
    def open(cls, path: Path) -> Pack:
        """Map a pack into memory. Reads the index only, so it takes no time however large it is.

        Raises:
            PackError: there is no pack, it is incomplete, or its index contradicts its frames.
        """
        index_path = path / "index.json"
        frames_path = path / "frames.bin"
        if not index_path.is_file() or not frames_path.is_file():
            raise PackError(f"{path}: not a pack (it has no index.json and frames.bin)")
        try:
            index = _Index.model_validate_json(index_path.read_bytes())
        except ValidationError as error:
            raise PackError(f"{index_path}: {_first(error)}") from error
        rows = _mapped(frames_path, index.frames, ROW_BYTES[index.encoding])
        pose_rows = None
        if index.pose_maps:
            pose_rows = _mapped(path / "pose.bin", index.frames, POSE_BYTES)
        for record in index.sequences:
            if record.first_frame + record.frames > index.frames:
                raise PackError(f"{index_path}: {_name(record)} ends after the last frame")
        partition_path = path / "partition.json"
        partition = Partition.load(partition_path) if partition_path.exists() else None
        return cls(
            path,
            index.encoding,
            rows,
            index.sequences,
            index.content_hash,
            partition,
            pose_rows,
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def __repr__(self) -> str:
        return (
            f"Pack({str(self.path)!r}, {self.encoding}, {len(self.subjects)} subjects, "
            f"{len(self)} sequences, {int(self.lengths.sum())} frames)"
        )

    def rows(self, indices: Indices) -> Bytes:
        """Frames as they are stored, for rows of `frames.bin` [...]: uint8 [..., 512 or 4096]."""
        return self._rows[indices]

    def pose_rows(self, indices: Indices) -> Bytes:
        """Pose maps for rows of `frames.bin` [...]: uint8 [..., 8192].

        Raises:
            PackError: the pack has none.
        """
        if self._pose_rows is None:
            raise PackError(f"{self.path} has no pose maps, which the network reads")
        return self._pose_rows[indices]

    def pose_maps(self, sequence: int) -> Bytes:
        """Pose maps of a sequence, limbs and joints: uint8 [s, 2, 64, 64].

        Raises:
            IndexError: there is no such sequence.
            PackError: the pack has none.
        """
        record = self.sequences[sequence]
        rows = self.pose_rows(record.first_frame + np.arange(record.frames))
        return rows.reshape(-1, POSE_MAPS, SIDE, SIDE)

    def walk(self, sequence: int, *, pose: bool) -> Bytes:
        """What a network reads of a sequence: uint8 [s, 64, 64].

        With `pose` its maps, limbs and joints, are in front of each silhouette: [s, 3, 64, 64].

        Raises:
            IndexError: there is no such sequence.
            PackError: pose maps are wanted, and the pack has none.
        """
        silhouettes = self.silhouettes(sequence)
        if not pose:
            return silhouettes
        return np.concatenate([self.pose_maps(sequence), silhouettes[:, None]], axis=1)

    def silhouettes(self, sequence: int, frames: Sequence[int] | None = None) -> Bytes:
        """Silhouettes of a sequence, all or those named: uint8 [s, 64, 64], 0 to 255.

        Raises:
            IndexError: there is no such sequence or frame.
        """
        record = self.sequences[sequence]
        if frames is None:
            rows = self._rows[record.first_frame : record.first_frame + record.frames]
            decoded = decode_frames(rows, self.encoding)
            return decoded.copy() if self.encoding == "grey" else decoded
        chosen = np.asarray(frames, np.int64)
        if chosen.size and not (-record.frames <= chosen.min() and chosen.max() < record.frames):
            raise IndexError(f"{_name(record)} has {record.frames} frames")
        return decode_frames(self._rows[record.first_frame + chosen % record.frames], self.encoding)

    def where(self, predicate: Callable[[SequenceRecord], bool]) -> Pack:
        """This pack with only the sequences for which `predicate` holds. Labels start anew.

        Raises:
            PackError: it holds for none.
        """
        chosen = [record for record in self.sequences if predicate(record)]
        if not chosen:
            raise PackError(f"{self.path}: no sequence is left by this selection")
        return Pack(
            self.path,
            self.encoding,
            self._rows,
            chosen,
            self.content_hash,
            self.partition,
            self._pose_rows,
        )

    def subset(self, subjects: Iterable[str]) -> Pack:
        """The sequences of these subjects; those the pack does not have are passed over.

        Field practice: partitions name subjects of the whole dataset. Labels start anew.

        Raises:
            PackError: it has none of them.
        """
        wanted = frozenset(subjects)
        if wanted.isdisjoint(self.subjects):
            sets = "it has no partition"
            if self.partition is not None:
                train, test = len(self.partition.train), len(self.partition.test)
                sets = f"its TRAIN_SET names {train}, its TEST_SET {test}"
            raise PackError(f"{self.path} has none of the subjects asked for; {sets}")
        return self.where(lambda record: record.subject in wanted)

    def verify(self) -> None:
        """Read everything and compare it with the content hash.

        Raises:
            PackError: frames or records are not what was written.
        """
        index = _Index.model_validate_json((self.path / "index.json").read_bytes())
        files = ["frames.bin", "pose.bin"] if index.pose_maps else ["frames.bin"]
        found = _content_hash([self.path / f for f in files], index.encoding, index.sequences)
        if found != self.content_hash:
            raise PackError(f"{self.path}: content hash is {found}, not {self.content_hash}")


class PackWriter:
    """Writes a pack sequence by sequence; nothing exists at `path` before `finish`.

    What was added survives a kill, beside the place of the pack: a writer with `resume=True` goes
    on after the last whole sequence, which `sequences` tells. Without it, it starts anew.

        with PackWriter(path) as writer:
            writer.add("0001", "nm-01", "090", silhouettes)
            pack = writer.finish()
    """

    def __init__(
        self,
        path: Path,
        encoding: Literal["auto", "binary", "grey"] = "auto",
        *,
        resume: bool = False,
    ) -> None:
        """Start or resume.

        Args:
            path: the folder to be; its parent is made when missing.
            encoding: `binary` keeps pixels of 128 and more as one bit; `grey` keeps all levels;
                `auto` is binary as long as all pixels are 0 or 255, and grey from then on.
            resume: go on where a writer for the same path was killed.

        Raises:
            PackError: `path` exists, or another process is writing it.
        """
        if path.exists():
            raise PackError(f"{path} exists already")
        self.path = path
        self._requested = encoding
        self._partial = path.with_name(f".{path.name}.partial")
        self._partial.mkdir(parents=True, exist_ok=True)
        self._lock = (self._partial / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise PackError(f"{path} is being written by another process") from error
        self._encoding: Encoding = "grey" if encoding == "grey" else "binary"
        self._records: list[SequenceRecord] = []
        self._frames = 0
        if resume:
            self._recover()
        self._remove_leftovers()
        self._data: BinaryIO = self._data_path(self._encoding).open("ab")
        self._journal: BinaryIO = self._journal_path(self._encoding).open("ab")

    @property
    def sequences(self) -> tuple[SequenceRecord, ...]:
        """What has been added so far, before a kill included."""
        return tuple(self._records)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files. What was added can be resumed."""
        for file in (self._data, self._journal, self._lock):
            file.close()

    def discard(self) -> None:
        """Throw away what was added."""
        self.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(
        self,
        subject: str,
        condition: str,
        view: str,
        silhouettes: Bytes,
        metadata: Mapping[str, Any] | None = None,
        pose_maps: Bytes | None = None,
    ) -> None:
        """Append one sequence.

        Args:
            subject: whose walk.
            condition: and in which condition.
            view: from which.
            silhouettes: uint8 [s, 64, 64], 0 is background and 255 the person.
            metadata: JSON values.
            pose_maps: uint8 [s, 2, 64, 64], limbs and joints; of all sequences or of none.

        Raises:
            PackError: no frames, another shape or dtype, an empty id, or pose maps where the other
                sequences have none, or none where they have.
        """
        name = f"{subject}/{condition}/{view}"
        if not (subject and condition and view):
            raise PackError(f"{name}: subject, condition and view must not be empty")
        if silhouettes.dtype != np.uint8 or silhouettes.shape[1:] != (SIDE, SIDE):
            raise PackError(
                f"{name}: uint8 [s, {SIDE}, {SIDE}] expected, "
                f"not {silhouettes.dtype} {list(silhouettes.shape)}"
            )
        if not len(silhouettes):
            raise PackError(f"{name}: no frames")
        if self._records and (pose_maps is not None) != self._has_pose:
            raise PackError(f"{name}: all sequences of a pack have pose maps, or none")
        form = (len(silhouettes), POSE_MAPS, SIDE, SIDE)
        if pose_maps is not None and (pose_maps.dtype != np.uint8 or pose_maps.shape != form):
            raise PackError(
                f"{name}: pose maps uint8 {list(form)} expected, "
                f"not {pose_maps.dtype} {list(pose_maps.shape)}"
            )
        if self._requested == "auto" and self._encoding == "binary":
            levels = np.bincount(silhouettes.reshape(-1), minlength=256)
            if levels[1:255].any():
                self._turn_grey()
        record = SequenceRecord(
            subject, condition, view, self._frames, len(silhouettes), dict(metadata or {})
        )
        line = _line(record)  # before any write: metadata that is no JSON must leave no trace
        # Frames first: a journal line is a promise that its frames are there.
        self._data.write(encode_frames(silhouettes, self._encoding).tobytes())
        self._data.flush()
        if pose_maps is not None:
            with self._pose_path.open("ab" if self._records else "wb") as file:
                file.write(pose_maps.tobytes())
        self._journal.write(line)
        self._journal.flush()
        self._records.append(record)
        self._frames += len(silhouettes)

    def finish(self, partition: Partition | None = None) -> Pack:
        """Complete the pack, put it into its place and open it.

        Raises:
            PackError: nothing was added.
        """
        if not self._records:
            raise PackError(f"{self.path}: no sequence was added")
        _sync(self._data)
        self._data.close()
        frames_path = self._partial / "frames.bin"
        self._data_path(self._encoding).rename(frames_path)
        files = [frames_path]
        if self._has_pose:
            files.append(self._pose_path)
            with self._pose_path.open("ab") as pose:
                _sync(pose)
        head = {
            "format": _FORMAT,
            "encoding": self._encoding,
            "frames": self._frames,
            **({"pose_maps": True} if self._has_pose else {}),
            "content_hash": _content_hash(files, self._encoding, self._records),
        }
        # One record a line: a person can read it, and two packs can be compared with diff.
        records = b",\n".join(_line(record).rstrip() for record in self._records)
        text = json.dumps(head).encode()[:-1] + b', "sequences": [\n' + records + b"\n]}\n"
        _replace(self._partial / "index.json", text)
        if partition is not None:
            partition.save(self._partial / "partition.json")
        self._partial.rename(self.path)
        sync(self.path.parent)
        self.close()
        (self.path / "lock").unlink()
        (self.path / self._journal_path(self._encoding).name).unlink()
        return Pack.open(self.path)

    @property
    def _pose_path(self) -> Path:
        return self._partial / "pose.bin"

    @property
    def _has_pose(self) -> bool:
        return bool(self._records) and self._pose_path.exists()

    def _data_path(self, encoding: Encoding) -> Path:
        return self._partial / f"{encoding}.bin"

    def _journal_path(self, encoding: Encoding) -> Path:
        return self._partial / f"{encoding}.jsonl"

    def _recover(self) -> None:
        """Take over what a killed writer left, up to its last whole sequence."""
        encodings: tuple[Encoding, ...] = ("binary", "grey")
        # The journal's name says which encoding counts; see `_turn_grey`.
        found = [encoding for encoding in encodings if self._journal_path(encoding).exists()]
        if not found:
            return
        encoding = found[0]
        if self._requested not in ("auto", encoding):
            raise PackError(
                f"{self.path}: begun as {encoding}, cannot be resumed as {self._requested}"
            )
        self._encoding = encoding
        data, journal = self._data_path(encoding), self._journal_path(encoding)
        complete = self._partial / "frames.bin"
        if complete.exists():  # killed within `finish`
            complete.rename(data)
        width = ROW_BYTES[encoding]
        available = data.stat().st_size // width if data.exists() else 0
        pose = self._pose_path
        if pose.exists():
            available = min(available, pose.stat().st_size // POSE_BYTES)
        kept = 0
        with journal.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                record = SequenceRecord(**json.loads(line))
                if record.first_frame + record.frames > available:
                    break
                self._records.append(record)
                self._frames = record.first_frame + record.frames
                kept += len(line)
        os.truncate(journal, kept)
        if data.exists():
            os.truncate(data, self._frames * width)
        if pose.exists():
            os.truncate(pose, self._frames * POSE_BYTES)

    def _remove_leftovers(self) -> None:
        """Remove what does not belong to the sequences that were taken over, or all there is."""
        kept = {"lock"}
        if self._records:
            kept |= {self._data_path(self._encoding).name, self._journal_path(self._encoding).name}
            kept.add(self._pose_path.name)
        for file in self._partial.iterdir():
            if file.name not in kept:
                file.unlink()

    def _turn_grey(self) -> None:
        """Go on with one byte a pixel. Renaming the journal is the moment from which it counts."""
        self._data.close()
        self._journal.close()
        binary = self._data_path("binary")
        with binary.open("rb") as source, self._data_path("grey").open("wb") as target:
            while chunk := source.read(_CHUNK_FRAMES * ROW_BYTES["binary"]):
                rows = np.frombuffer(chunk, np.uint8).reshape(-1, ROW_BYTES["binary"])
                target.write(decode_frames(rows, "binary").tobytes())
        self._journal_path("binary").rename(self._journal_path("grey"))
        binary.unlink()
        self._encoding = "grey"
        self._data = self._data_path("grey").open("ab")
        self._journal = self._journal_path("grey").open("ab")


def _line(record: SequenceRecord) -> bytes:
    fields = {
        "subject": record.subject,
        "condition": record.condition,
        "view": record.view,
        "first_frame": record.first_frame,
        "frames": record.frames,
        "metadata": dict(record.metadata),
    }
    try:
        text = json.dumps(fields, ensure_ascii=False, sort_keys=True, allow_nan=False)
        return text.encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise PackError(f"{_name(record)}: metadata must be JSON: {error}") from error


def _mapped(path: Path, frames: int, width: int) -> Bytes:
    """A file of so many rows, which is read where it is looked at."""
    size = path.stat().st_size if path.is_file() else 0
    if size != frames * width:
        raise PackError(f"{path}: {size} bytes, but the index says {frames} frames of {width}")
    # A plain array over the map: numpy.memmap's own indexing costs more than the copy itself.
    return np.asarray(np.memmap(path, np.uint8, mode="r", shape=(frames, width)))


def _content_hash(
    files: Iterable[Path], encoding: Encoding, records: Iterable[SequenceRecord]
) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {encoding}\n".encode())
    for record in records:
        digest.update(_line(record))
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _name(record: SequenceRecord) -> str:
    return f"{record.subject}/{record.condition}/{record.view}"


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else str(detail["msg"])


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        _sync(file)
    temporary.rename(path)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())

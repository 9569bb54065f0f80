"""Snapshots of large indexes on disk, so that a start need not code a gallery anew.

A snapshot is never a second truth. It counts only while it fits the database: the same history, and
nothing erased or corrected since its revision; the index follows the database from there. It holds
codes, ids and metadata, so `sweep` follows every erasure and correction and removes what does not
fit any more, before the erasure is answered. Galleries that are encrypted have none.

A file arrives whole, under a lock, after a last look at the database: none that was begun before an
erasure can appear after it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from models.files.array_file import read_array
from service.gallery.coded_index import Codes, Lists
from service.gallery.roster import ID_BYTES, Facets, Listing, check
from service.gallery.scenes import version_in
from service.gallery.sealing import sealing_of
from service.gallery.tables import ErasedSequenceRow, GalleryRow, SequenceRow

_FORMAT = 2
_END = ".npz"
_LONGEST_MARK = 4096  # bytes
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An index as of one revision.

    Attributes:
        version: what `Snapshots.version` said before the index was begun.
        revision: that the index had applied.
        listing: its sequences.
        codes: of their embeddings; keys are positions in `listing`.
    """

    version: str
    revision: int
    listing: Listing
    codes: Codes


@dataclass(frozen=True, slots=True)
class _Mark:
    """What a snapshot is of; `last` is the sequence that came last."""

    format: int
    gallery_id: str
    digest: str
    version: str
    revision: int
    sequences: int
    last: str


_MARK = TypeAdapter(_Mark)
_NAMES = TypeAdapter(list[str])
_KINDS = TypeAdapter(list[Facets])


class Snapshots:
    """The snapshots in a folder, one for each gallery and checkpoint. From any thread."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        """The folder need not exist; its parent is closed to other users."""
        self._engine = engine
        self._folder = folder

    def version(self, gallery_id: str, scene: str | None) -> str:
        """What is compared depends on beside the checkpoint, for an index with this scene."""
        with Session(self._engine) as session:
            return _version(session, gallery_id, scene)

    def exists(self, gallery_id: str, digest: str) -> bool:
        """Whether there is one, fitting or not."""
        return self._path(gallery_id, digest).exists()

    def load(self, gallery_id: str, digest: str) -> Snapshot | None:
        """The snapshot of a gallery under a checkpoint, if there is one that fits the database."""
        path = self._path(gallery_id, digest)
        if self._encrypted or not path.exists():
            return None
        try:
            with zipfile.ZipFile(path) as file:
                mark = _read_mark(file)
                with Session(self._engine) as session:
                    fits = _fits(session, mark) and _same_history(session, mark)
                if not fits or (mark.gallery_id, mark.digest) != (gallery_id, digest):
                    _log.info("a snapshot does not fit the database and is not used")
                    return None
                return _read(file, mark)
        except _UNREADABLE as error:
            _log.warning("a snapshot cannot be read and is not used: %r", error)
            return None

    def save(self, gallery_id: str, digest: str, snapshot: Snapshot) -> bool:
        """Keep a snapshot in the place of the one that there is; whether it still fitted.

        Raises:
            OSError: the disk is full, or its file system has no files without names.
        """
        listing = snapshot.listing
        if self._encrypted or len(listing.sequence_ids) == 0:
            return False
        last = listing.sequence_ids[-1].decode()
        count = len(listing.sequence_ids)
        mark = _Mark(_FORMAT, gallery_id, digest, snapshot.version, snapshot.revision, count, last)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # Without a name until it is whole: whatever happens, nothing is left of it.
        unnamed = os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with os.fdopen(unnamed, "w+b") as file:
            np.savez(file, allow_pickle=False, **_arrays(mark, snapshot))
            file.flush()
            os.fsync(file.fileno())
            with self._locked(), Session(self._engine) as session:
                sealing_of(self._engine).require_current(session)
                if not (_fits(session, mark) and _same_history(session, mark)):
                    return False
                path = self._path(gallery_id, digest)
                path.unlink(missing_ok=True)
                # With a descriptor of any folder Python calls linkat(2), which follows the link.
                os.link(f"/proc/self/fd/{unnamed}", path, src_dir_fd=unnamed)
        return True

    def sweep(self) -> None:
        """Remove what does not fit the database any more; call it after what erases or corrects.

        Raises:
            OSError: the disk refused.
        """
        if not self._folder.exists():
            return
        with self._locked(), Session(self._engine) as session:
            for path in self._folder.glob(f"*{_END}"):
                if self._encrypted or not _path_fits(session, path):
                    path.unlink(missing_ok=True)

    @property
    def _encrypted(self) -> bool:
        return sealing_of(self._engine).key_id is not None

    def _path(self, gallery_id: str, digest: str) -> Path:
        return self._folder / f"{gallery_id}-{digest}{_END}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all threads and processes; a process that dies lets go."""
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _version(session: Session, gallery_id: str, scene: str | None) -> str:
    epoch = session.scalar(select(GalleryRow.index_epoch).where(GalleryRow.id == gallery_id))
    return f"{epoch} {scene}"


def _fits(session: Session, mark: _Mark) -> bool:
    """Whether the gallery is there, and nothing of it was erased or made anew since."""
    newest = session.scalar(select(GalleryRow.revision).where(GalleryRow.id == mark.gallery_id))
    if newest is None or newest < mark.revision or mark.format != _FORMAT:
        return False
    gone = select(ErasedSequenceRow.sequence_id).where(
        ErasedSequenceRow.gallery_id == mark.gallery_id,
        ErasedSequenceRow.revision > mark.revision,
    )
    scene = version_in(session, mark.gallery_id, mark.digest)
    version = _version(session, mark.gallery_id, scene)
    return version == mark.version and not session.scalars(gone).first()


def _same_history(session: Session, mark: _Mark) -> bool:
    """Whether the database has what the snapshot has: one from a backup may have gone its own way.

    Counts the gallery's sequences: 50 ms for a million.
    """
    until = (SequenceRow.gallery_id == mark.gallery_id, SequenceRow.revision <= mark.revision)
    last = session.scalar(select(SequenceRow.id).where(SequenceRow.id == mark.last, *until))
    return last is not None and session.scalar(select(func.count()).where(*until)) == mark.sequences


def _path_fits(session: Session, path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            mark = _read_mark(file)
    except _UNREADABLE:
        return False  # and whatever it holds must not stay
    return path.name == f"{mark.gallery_id}-{mark.digest}{_END}" and _fits(session, mark)


def _arrays(mark: _Mark, snapshot: Snapshot) -> dict[str, npt.NDArray[Any]]:
    listing, codes = snapshot.listing, snapshot.codes
    return {
        "mark": _text(asdict(mark)),
        "sequence_ids": listing.sequence_ids,
        "subject_of": listing.subject_of,
        "subjects": _text(listing.subjects),
        "kind_of": listing.kind_of,
        "kinds": _text(listing.kinds),
        "directions": codes.lists.directions,
        "centres": codes.lists.centres,
        "sizes": codes.sizes,
        "keys": codes.keys,
        "blocks": codes.blocks,
    }


def _text(value: object) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _read_mark(file: zipfile.ZipFile) -> _Mark:
    if file.getinfo("mark.npy").file_size > _LONGEST_MARK:
        raise ValueError("its mark is too long")
    return _MARK.validate_json(_text_of(file, "mark"))


def _read(file: zipfile.ZipFile, mark: _Mark) -> Snapshot:
    """Everything; zip has a checksum of each array."""
    count = mark.sequences
    listing = Listing(
        _array(file, "sequence_ids", f"S{ID_BYTES}", count),
        _array(file, "subject_of", np.int32, count),
        _NAMES.validate_json(_text_of(file, "subjects")),
        _array(file, "kind_of", np.int32, count),
        _KINDS.validate_json(_text_of(file, "kinds")),
    )
    codes = Codes(
        Lists(
            _array(file, "directions", np.float32, None, None),
            _array(file, "centres", np.float32, None, None),
        ),
        _array(file, "sizes", np.int64, None),
        _array(file, "keys", np.int64, count),
        _array(file, "blocks", np.uint8, None),
    )
    if not all(np.isfinite(numbers).all() for numbers in codes.lists):
        raise ValueError("its lists are not of numbers")
    check(listing)
    if not np.array_equal(np.sort(codes.keys), np.arange(count)):
        raise ValueError("its codes are not those of its sequences")
    return Snapshot(mark.version, mark.revision, listing, codes)


def _array(file: zipfile.ZipFile, name: str, dtype: npt.DTypeLike, *shape: int | None) -> Any:
    about = file.getinfo(f"{name}.npy")
    if about.compress_type != zipfile.ZIP_STORED:  # or a few bytes may claim a lot of memory
        raise ValueError(f"{name} is compressed")
    return read_array(file.read(about), dtype, shape)


def _text_of(file: zipfile.ZipFile, name: str) -> bytes:
    text: bytes = _array(file, name, np.uint8, None).tobytes()
    return text

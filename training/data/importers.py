"""From what people have on disk to a pack.

pickles    SUBJECT/CONDITION/VIEW/*.pkl     prepared silhouettes, as OpenGait keeps them
images     SUBJECT/CONDITION/VIEW/*.png     raw or prepared silhouettes, one file a frame
walks      SUBJECT/VIEW_CONDITION.zip       raw or prepared, any format that can be uploaded
gallery    one .zip                         the file that the service exports of a gallery
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import signal
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from models.files.gallery_file import BrokenGalleryFile
from models.silhouettes import DecodeLimits, PoorSequence, SequenceError, decode, prepare
from training.data.gallery_export import GalleryExport, is_gallery_export
from training.data.pack import SIDE, Encoding, Pack, PackWriter, Partition
from training.data.pickles import UnsafePickle, read_pickled_array
from training.process.processor import one_thread_each

Format = Literal["pickles", "images", "walks", "gallery"]

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
_WALK = re.compile(r"(?P<view>[^_.][^_]*)_(?P<condition>[^_.]+)\.\w+(\.gz)?")
_NARROW = 44
_LARGEST_PICKLE = 2**30
# A person packs a dataset of their own: generous, but a broken file must still not fill the memory.
_LIMITS = DecodeLimits(
    max_frames=10_000, max_side=4096, max_decoded_bytes=4 * 2**30, max_seconds=600.0
)

Silhouettes = npt.NDArray[np.uint8]


class SourceError(ValueError):
    """A source that cannot be packed; the text begins with the file at fault."""


class Progress(NamedTuple):
    """Told after every sequence.

    Attributes:
        done: sequences dealt with so far.
        total: sequences in the source.
        name: the sequence's file or folder.
        skipped: why it was left out, or None when it is in the pack.
    """

    done: int
    total: int
    name: str
    skipped: str | None


@dataclass(frozen=True, slots=True)
class _Walk:
    """A sequence in a source, not read yet."""

    subject: str
    condition: str
    view: str
    name: str
    read: Callable[[], Silhouettes]
    metadata: dict[str, Any] = field(default_factory=dict)


def pack_dataset(
    source: Path,
    out: Path,
    format: Literal["auto"] | Format = "auto",
    *,
    encoding: Literal["auto"] | Encoding = "auto",
    partition: Partition | None = None,
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
) -> Pack:
    """Pack a dataset. The same source gives the same pack, whatever the number of workers.

    A walk in which no gait can be recognised (raw silhouettes only) is left out, and `progress` is
    told why. Anything else that is wrong ends the import, and nothing is left at `out`.

    Args:
        source: folder or file, see the module's docstring.
        out: the pack to be; must not exist.
        format: what the source is; `auto` looks at its names.
        encoding: see `PackWriter`.
        partition: train and test subjects, to go into the pack.
        workers: processes that read and prepare raw silhouettes; 1 does so in this one. What is
            prepared already, pickles and galleries, is read in a thread of this one always.
        progress: called after every sequence, in order.

    Raises:
        SourceError: the source is none of the formats, empty, or a file of it is wrong.
        PackError: `out` exists.
    """
    if not source.exists():
        raise SourceError(f"{source} does not exist")
    with ExitStack() as stack:
        format = _detect(source) if format == "auto" else format
        walks = _list(source, format, stack)
        if not walks:
            none = "nobody is enrolled in it" if format == "gallery" else "no sequence found"
            raise SourceError(f"{source}: {none}")
        writer = stack.enter_context(PackWriter(out, encoding))
        workers = min(workers, len(walks)) if format in ("images", "walks") else 1
        pool = stack.enter_context(_readers(workers))
        try:
            for done, (walk, read) in enumerate(_read_ahead(walks, pool, 2 * workers), 1):
                skipped = read if isinstance(read, str) else None
                if not isinstance(read, str):
                    writer.add(walk.subject, walk.condition, walk.view, read, walk.metadata)
                if progress is not None:
                    progress(Progress(done, len(walks), walk.name, skipped))
            if not writer.sequences:
                raise SourceError(f"{source}: every sequence was left out, the last because {read}")
            return writer.finish(partition)
        except BaseException:
            writer.discard()
            raise


def _detect(source: Path) -> Format:
    if source.is_file():
        if is_gallery_export(source):
            return "gallery"
        raise SourceError(f"{source}: a file, but not a gallery export")
    for path in source.glob("*/*/*/*"):
        if path.suffix == ".pkl":
            return "pickles"
        if path.suffix.lower() in _IMAGES:
            return "images"
    if any(_WALK.fullmatch(path.name) for path in source.glob("*/*.*")):
        return "walks"
    raise SourceError(
        f"{source}: none of SUBJECT/CONDITION/VIEW/*.pkl, SUBJECT/CONDITION/VIEW/*.png, "
        "SUBJECT/VIEW_CONDITION.zip or a gallery export"
    )


def _list(source: Path, format: Format, stack: ExitStack) -> list[_Walk]:
    if format == "gallery":
        return list(_list_gallery(source, stack))
    if not source.is_dir():
        raise SourceError(f"{source}: not a folder")
    if format == "pickles":
        return list(_list_pickles(source))
    return list(_list_images(source) if format == "images" else _list_walks(source))


@contextmanager
def _readers(workers: int) -> Iterator[Executor]:
    """Processes, because threads that prepare take turns at the interpreter; for one, a thread."""
    if workers == 1:
        with ThreadPoolExecutor(1) as pool:
            yield pool
        return
    with (
        one_thread_each(os.environ),
        ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_become_reader
        ) as pool,
    ):
        yield pool


def _become_reader() -> None:
    """Make a worker process use one core in OpenCV too, and end with the one that started it."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: that one sees to the rest
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _read_ahead(
    walks: Iterable[_Walk], pool: Executor, most: int
) -> Iterator[tuple[_Walk, Silhouettes | str]]:
    """Read in the pool, `most` ahead, in order. A string says why a walk is left out."""
    ahead: deque[tuple[_Walk, Future[Silhouettes | str]]] = deque()
    try:
        for walk in walks:
            ahead.append((walk, pool.submit(_read, walk)))
            if len(ahead) > most:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        for _, future in ahead:
            future.cancel()


def _read(walk: _Walk) -> Silhouettes | str:
    try:
        return walk.read()
    except PoorSequence as error:
        return str(error)
    except (SequenceError, UnsafePickle, BrokenGalleryFile, SourceError, OSError) as error:
        raise SourceError(f"{walk.name}: {error}") from error


def _folders(source: Path) -> Iterator[tuple[str, str, str, Path]]:
    """Subject, condition, view and folder, in the order of their names."""
    for folder in sorted(source.glob("*/*/*")):
        if folder.is_dir():
            yield (*folder.relative_to(source).parts, folder)  # type: ignore[misc]


def _list_pickles(source: Path) -> Iterator[_Walk]:
    for subject, condition, view, folder in _folders(source):
        files = sorted(folder.glob("*.pkl"))
        # Beside silhouettes some datasets keep poses and the like; names tell them apart.
        if len(files) > 1:
            files = [f for f in files if f.stem == view] or [f for f in files if "sil" in f.stem]
        if len(files) != 1:
            raise SourceError(f"{folder}: one .pkl of silhouettes expected, found {len(files)}")
        yield _Walk(subject, condition, view, str(files[0]), partial(_read_pickle, files[0]))


def _read_pickle(path: Path) -> Silhouettes:
    if path.stat().st_size > _LARGEST_PICKLE:
        raise SourceError("larger than any sequence of silhouettes")
    array = read_pickled_array(path.read_bytes())
    if array.ndim != 3 or array.shape[1] != SIDE or array.shape[2] not in (SIDE, _NARROW):
        raise SourceError(
            f"[s, {SIDE}, {SIDE}] or [s, {SIDE}, {_NARROW}] expected, not {list(array.shape)}"
        )
    if not len(array):
        raise SourceError("no frames")
    if array.max() == 1:  # stored as 0 and 1
        array = array * np.uint8(255)
    if array.shape[2] == _NARROW:
        margin = (SIDE - _NARROW) // 2
        array = np.pad(array, ((0, 0), (0, 0), (margin, margin)))
    return array


def _list_images(source: Path) -> Iterator[_Walk]:
    for subject, condition, view, folder in _folders(source):
        files = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGES]
        if not files:
            raise SourceError(f"{folder}: no images")
        yield _Walk(subject, condition, view, str(folder), partial(_read_images, files))


def _read_images(files: list[Path]) -> Silhouettes:
    # As the archive that a person would upload, so that order, limits and checks are the same.
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for path in files:
            target.write(path, path.name)
    return _prepare(archive.getvalue())


def _list_walks(source: Path) -> Iterator[_Walk]:
    for path in sorted(source.glob("*/*.*")):
        if path.name.startswith("."):
            continue
        name = _WALK.fullmatch(path.name)
        if name is None:
            raise SourceError(f"{path}: not named VIEW_CONDITION, as 090_1.zip")
        read = partial(_read_walk, path)
        yield _Walk(path.parent.name, name["condition"], name["view"], str(path), read)


def _read_walk(path: Path) -> Silhouettes:
    if path.stat().st_size > _LIMITS.max_decoded_bytes:
        raise SourceError("larger than any sequence of silhouettes")
    return _prepare(path.read_bytes())


def _prepare(data: bytes) -> Silhouettes:
    return prepare(decode(data, _LIMITS), clean=True).silhouettes


def _list_gallery(source: Path, stack: ExitStack) -> Iterator[_Walk]:
    try:
        export = stack.enter_context(GalleryExport(source))
        for entry in export.sequences():
            yield _Walk(
                entry.subject_id,
                str(entry.metadata.get("condition") or "unknown"),
                str(entry.metadata.get("view") or "unknown"),
                f"{source}: sequence {entry.sequence_id}",
                partial(export.silhouettes, entry.sequence_id),
                {**entry.metadata, "sequence_id": entry.sequence_id},
            )
    except BrokenGalleryFile as error:
        raise SourceError(f"{source}: {error}") from error

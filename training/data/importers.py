"""From what people have on disk to a pack.

pickles    SUBJECT/CONDITION/VIEW/*.pkl     prepared silhouettes, as OpenGait keeps them, and the
                                            heat maps of SkeletonGait beside them
images     SUBJECT/CONDITION/VIEW/*.png     raw or prepared silhouettes, one file a frame
walks      SUBJECT/VIEW_CONDITION.zip       raw or prepared, any format that can be uploaded
ou-mvlp    Silhouette_VIEW-WALK/SUBJECT     raw images of OU-MVLP as they are published
gallery    one .zip                         the file that the service exports of a gallery
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, NamedTuple

import cv2

from models.files.gallery_file import BrokenGalleryFile
from models.silhouettes import SequenceError
from training.data.pack import Encoding, Pack, PackWriter, Partition
from training.data.pickles import UnsafePickle
from training.data.sources import RAW, Format, LeftOut, Silhouettes, Source, SourceError, Walk
from training.process.processor import one_thread_each


class Frames(NamedTuple):
    """What was read of a walk: uint8 [s, 64, 64], and [s, 2, 64, 64] if it has pose maps."""

    silhouettes: Silhouettes
    pose_maps: Silhouettes | None


class Progress(NamedTuple):
    """Told after every sequence.

    Attributes:
        done: sequences dealt with so far.
        total: sequences in the source.
        name: the sequence's file or folder.
    """

    done: int
    total: int
    name: str


def pack_dataset(
    source: Path,
    out: Path,
    format: Literal["auto"] | Format = "auto",
    *,
    encoding: Literal["auto"] | Encoding = "auto",
    partition: Partition | None = None,
    silhouettes: str | None = None,
    pose_maps: str | Path = "auto",
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
    left_out: Callable[[LeftOut], None] | None = None,
) -> Pack:
    """Pack a dataset. The same source gives the same pack, whatever the number of workers.

    What is no walk, cannot be read or shows no gait (raw silhouettes only) is left out, and
    `left_out` is told why; a gallery is packed whole or not at all. If the import ends early,
    nothing is left at `out`.

    Args:
        source: folder or file, see the module's docstring.
        out: the pack to be; must not exist.
        format: what the source is; `auto` looks at its names.
        encoding: see `PackWriter`.
        partition: train and test subjects, to go into the pack.
        silhouettes: which file of each folder holds them (pickles), or which are frames (images), a
            pattern of names; their usual names when None.
        pose_maps: of pickles, the field's heat maps: "auto" packs what has `heatmap` in its name
            beside each walk's silhouettes, if there is any, "none" does not; else a pattern of
            names, or a folder with a pickle of them in each SUBJECT/CONDITION/VIEW. A walk without
            is left out of a pack that has them.
        workers: processes that read and prepare raw silhouettes; 1 does so in this one. What is
            prepared already, pickles and galleries, is read in a thread of this one always.
        progress: called after every sequence, in order.
        left_out: called with everything that does not come into the pack.

    Raises:
        SourceError: the source is none of the formats, everything in it is left out, several files
            of a folder might be its silhouettes, or a gallery is broken.
        PackError: `out` exists.
    """
    if not source.exists():
        raise SourceError(f"{source} does not exist")
    refused: list[LeftOut] = []

    def leave_out(what: LeftOut) -> None:
        refused.append(what)
        if left_out is not None:
            left_out(what)

    with ExitStack() as stack:
        found = Source(source, silhouettes, leave_out, pose_maps)
        format = found.detect() if format == "auto" else format
        if pose_maps not in ("auto", "none") and format != "pickles":
            raise SourceError(f"{source}: pose maps are read beside pickles, not with {format}")
        if silhouettes is not None and format in ("walks", "gallery"):
            raise SourceError(f"{source}: in {format} there are no files to choose by their names")
        walks = found.walks(format, stack)
        if not walks and format == "gallery":
            raise SourceError(f"{source}: nobody is enrolled in it")
        writer = stack.enter_context(PackWriter(out, encoding))
        workers = max(1, min(workers, len(walks))) if format in RAW else 1
        pool = stack.enter_context(_readers(workers))
        try:
            for done, (walk, read) in enumerate(_read_ahead(walks, pool, 2 * workers), 1):
                if isinstance(read, str):
                    leave_out(LeftOut(walk.name, read))
                else:
                    writer.add(
                        walk.subject,
                        walk.condition,
                        walk.view,
                        read.silhouettes,
                        walk.metadata,
                        read.pose_maps,
                    )
                if progress is not None:
                    progress(Progress(done, len(walks), walk.name))
            if not writer.sequences:
                raise SourceError(f"{source}: {_nothing(refused)}")
            return writer.finish(partition)
        except BaseException:
            writer.discard()
            raise


def _nothing(refused: list[LeftOut]) -> str:
    first = f"{refused[0].name}: {refused[0].reason}"
    return f"nothing can be packed, {len(refused):,} left out; the first is {first}"


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
    walks: Iterable[Walk], pool: Executor, most: int
) -> Iterator[tuple[Walk, Frames | str]]:
    """Read in the pool, `most` ahead, in order. A string says why a walk is left out."""
    ahead: deque[tuple[Walk, Future[Frames | str]]] = deque()
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


def _read(walk: Walk) -> Frames | str:
    try:
        frames = Frames(walk.read(), walk.read_pose_maps and walk.read_pose_maps())
    except (SequenceError, UnsafePickle, SourceError) as error:
        return str(error)
    except FileNotFoundError:  # a link to nothing; other errors of the disk may pass
        return "the file does not exist"
    except (BrokenGalleryFile, OSError) as error:
        raise SourceError(f"{walk.name}: {error}") from error
    if frames.pose_maps is not None and len(frames.pose_maps) != len(frames.silhouettes):
        return f"{len(frames.silhouettes)} silhouettes, but pose maps of {len(frames.pose_maps)}"
    return frames

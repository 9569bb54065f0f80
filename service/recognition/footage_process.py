"""The process that looks for walks in a long clip; it may be ended at any moment.

`python -m service.recognition.footage_process OPTIONS` reads a stranger's bytes, from the file that
is its standard input. Before it looks at one it gives up what it does not need, as decoders do: it
can write to no file, open few, and take so much memory. The kernel ends it when one picture takes
longer than a clip of a request may. It writes a line of JSON for each thing it has to say (see
`footage_reader`), after a walk's its silhouettes, uint8 [s, 64, 64].
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

import cv2

from models.footage.finding import WalkFinder
from models.footage.pictures import FootageLimits, Picture, read_pictures
from models.footage.segmentation import (
    BackgroundSegmenter,
    NetworkSegmenter,
    Segmenter,
    SegmenterName,
)
from models.footage.upload import Origin, choose_segmenter, why_nobody
from models.footage.walks import FoundWalk
from models.footage.weights import MissingWeights
from models.silhouettes.errors import PoorSequence, SequenceError
from models.silhouettes.prepare import prepare
from service.recognition.confinement import (
    FOR_FOOTAGE,
    THREADS,
    allow_memory,
    allow_time,
    confine,
)

_SAY_S: Final = 1.0  # between two words on how far it is
_MOST_PICTURES: Final = 2**31  # time is what bounds them

Say = Callable[..., None]


def main(arguments: list[str]) -> None:
    """Look for walks; the argument is JSON.

    `memory_bytes` beside what is in use, `picture_seconds` that one may take, `seconds` for all,
    `max_side`, `clean`, `segmenter`.
    """
    options: dict[str, Any] = json.loads(arguments[0])
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print

        def say(kind: str, silhouettes: bytes = b"", **what: Any) -> None:
            out.write(json.dumps({"kind": kind, **what}).encode() + b"\n" + silhouettes)
            out.flush()

        cv2.setNumThreads(1)
        confine()
        try:
            with mmap.mmap(sys.stdin.fileno(), 0, access=mmap.ACCESS_READ) as clip:
                allow_memory(options["memory_bytes"] + FOR_FOOTAGE)
                _look(clip, options, say)
        except (SequenceError, MissingWeights) as error:
            say("refused", reason=str(error))
        except MemoryError:
            say("refused", reason=None)
        except Exception:
            say("fault", trace=traceback.format_exc())


def _look(clip: mmap.mmap, options: dict[str, Any], say: Say) -> None:
    seconds, a_picture = options["seconds"], options["picture_seconds"] * THREADS
    limits = FootageLimits(
        max_seconds_long=float("inf"),
        max_pictures=_MOST_PICTURES,
        max_side=options["max_side"],
        max_seconds=seconds,
    )
    allow_time(a_picture)
    make = _network if options["segmenter"] == "network" else BackgroundSegmenter
    segmenter, pictures = choose_segmenter(read_pictures(clip, limits), make)
    finder = WalkFinder(segmenter)
    lasts = 0.0

    def watched() -> Iterator[Picture]:
        nonlocal lasts
        said = 0.0
        for picture in pictures:
            lasts = picture.seconds
            if time.monotonic() - said >= _SAY_S:
                said = time.monotonic()
                allow_time(a_picture)
                say("at", read=clip.tell(), of=len(clip))
            yield picture

    for walk in finder.find(watched()):
        _tell(walk, segmenter.name, clean=options["clean"], say=say)
    say(
        "done",
        segmenter=segmenter.name,
        seconds=round(lasts, 3),
        people=finder.people,
        nobody=why_nobody(finder.people, finder.outcome),
    )


def _tell(walk: FoundWalk, segmenter: SegmenterName, *, clean: bool, say: Say) -> None:
    try:
        silhouettes, quality = prepare(walk.frames, clean=clean)
    except PoorSequence as error:
        say("poor", codes=error.reasons)
        return
    origin = Origin(segmenter, walk.track, walk.from_s, walk.to_s)
    say(
        "walk",
        silhouettes.tobytes(),
        frames=len(silhouettes),
        quality=asdict(quality),
        origin=asdict(origin),
    )


def _network() -> Segmenter:
    return NetworkSegmenter(threads=THREADS)


if __name__ == "__main__":
    main(sys.argv[1:])

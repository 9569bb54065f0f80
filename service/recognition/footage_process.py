"""The process that looks for walks in a long clip; it may be ended at any moment.

`python -m service.recognition.footage_process OPTIONS` reads a stranger's bytes, from the file that
is its standard input. Before it looks at one it gives up what it does not need, as decoders do: it
can write to no file, open few, and take so much memory. The kernel ends it when one picture takes
longer than a clip of a request may. It writes a line of JSON for each thing it has to say (see
`footage_reader`), after a walk's its silhouettes, uint8 [s, 64, 64].

A clip is looked at in parts, and between two of them nobody is followed: the walks after a part are
the same whether the parts before were read by this process or by one that was killed. Without
networks they are nearly so, for what stands still is learned anew.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Final

import cv2

from models.footage.finding import WalkFinder
from models.footage.pictures import FootageLimits, read_pictures
from models.footage.segmentation import (
    BackgroundSegmenter,
    MaskSegmenter,
    NetworkSegmenter,
    Segmenter,
    SegmenterName,
)
from models.footage.upload import Origin, choose_segmenter, why_nobody
from models.footage.walks import FoundWalk, Outcome
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
_PART_S: Final = 20.0  # of a clip at least, and then the next moment in which nobody is followed
_LONGEST_PART_S: Final = 120.0  # after which those who are followed begin again
_LEARNS_S: Final = 20.0  # before a part, where masks come of what stands still
_MOST_PICTURES: Final = 2**31  # time is what bounds them

Say = Callable[..., None]


def main(arguments: list[str]) -> None:
    """Look for walks; the argument is JSON.

    `memory_bytes` beside what is in use, `picture_seconds` that one may take, `seconds` for all,
    `max_side`, `clean`, `segmenter`, and `begin`: what it said last of a part, to go on after it.
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
    said = 0.0

    def going_on() -> None:
        nonlocal said
        if time.monotonic() - said >= _SAY_S:
            said = time.monotonic()
            allow_time(a_picture)
            say("at", read=clip.tell(), of=len(clip))

    def tell(walks: Iterable[FoundWalk]) -> None:
        for walk in walks:
            _tell(walk, segmenter.name, clean=options["clean"], say=say)

    begin: dict[str, Any] | None = options["begin"]
    if begin is None:
        segmenter, pictures = choose_segmenter(read_pictures(clip, limits), make)
        finder = WalkFinder(segmenter)
    else:
        segmenter = MaskSegmenter() if begin["segmenter"] == MaskSegmenter.name else make()
        known = Outcome(**begin["outcome"])
        finder = WalkFinder(segmenter, known, begin["people"], begin["tracks"])
        before = _LEARNS_S if segmenter.uses_background else 0.0
        pictures = read_pictures(
            clip, limits, from_s=max(0.0, begin["seconds"] - before), passed=going_on
        )
    began = 0.0 if begin is None else begin["seconds"]
    lasts = began
    for picture in pictures:
        going_on()
        if picture.seconds < began:
            segmenter.find(picture.image)
            continue
        since = picture.seconds - began
        if since >= (_LONGEST_PART_S if finder.follows else _PART_S):
            tell(finder.finish())
            began = picture.seconds
            say(
                "part",
                segmenter=segmenter.name,
                seconds=began,
                tracks=finder.tracks,
                people=finder.people,
                outcome=finder.outcome._asdict(),
            )
        lasts = picture.seconds
        tell(finder.see(picture))
    tell(finder.finish())
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

"""Pictures of footage one by one, with their times, from bytes that nobody vouches for.

A clip is never held: a picture is read, looked at, and gone. More than some thirty pictures a
second are thinned out, by their times, so that every camera's walks are alike.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.budget import Budget, DecodeLimits
from models.silhouettes.errors import MalformedSequence, SequenceTooLarge, UnsupportedSequence
from models.silhouettes.sniff import VIDEOS, sniff
from models.silhouettes.video import decode_pictures

Image: TypeAlias = NDArray[np.uint8]
"""Pixels of a picture, uint8 `[h, w, 3]`, blue first as OpenCV has it."""

CLOSEST_S: Final = 1 / 36
"""Seconds from one picture to the next at least: 30 a second stay, and 50 become 25."""

_LARGEST_SIDE: Final = 1280  # pixels; people of a larger picture lose nothing that is used
_UNTIMED_RATE: Final = 25.0  # pictures a second, of a file that does not say
_SHORTEST_CLIP: Final = 2  # pictures


@dataclass(frozen=True, slots=True)
class FootageLimits:
    """What a clip may cost.

    Attributes:
        max_seconds_long: how long it may last; infinite for files that a job reads.
        max_pictures: pictures in it.
        max_side: rows or columns of a picture, in pixels.
        max_seconds: wall-clock seconds of reading and looking.
    """

    max_seconds_long: float = 60.0
    max_pictures: int = 7200
    max_side: int = 4096
    max_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of footage.

    Attributes:
        seconds: since the first picture.
        image: uint8 `[h, w, 3]`, no side above 1280.
        scale: pixels of the original for one of `image`.
    """

    seconds: float
    image: Image
    scale: float = 1.0


def read_pictures(data: bytes | mmap.mmap, limits: FootageLimits) -> Iterator[Picture]:
    """Read an MP4, AVI or WebM, turned upright as its metadata asks, in the order of time.

    Args:
        data: the file's bytes, or a mapped file.
        limits: what it may cost.

    Raises:
        MalformedSequence: it is damaged, or holds no moving pictures.
        UnsupportedSequence: it is no video of an accepted kind.
        SequenceTooLarge: it is over a limit.
    """
    kind = sniff(bytes(data[:512]))
    if kind not in VIDEOS:
        raise UnsupportedSequence(f"{kind.value} is no footage; send an MP4, AVI or WebM video")
    decoding = DecodeLimits(
        max_frames=limits.max_pictures, max_side=limits.max_side, max_seconds=limits.max_seconds
    )
    budget = Budget(decoding)
    first: float | None = None
    due = -math.inf
    count = 0
    for number, frame in enumerate(decode_pictures(data, kind, budget, limits.max_seconds_long)):
        budget.give_back(frame.height * frame.width)
        count += 1
        seconds = frame.time if frame.time is not None else number / _UNTIMED_RATE
        first = seconds if first is None else first
        seconds -= first
        if seconds > limits.max_seconds_long:
            raise SequenceTooLarge(
                f"the video lasts longer than the {limits.max_seconds_long:g} s that are read; "
                "cut it"
            )
        if seconds < due:
            continue
        due = seconds + CLOSEST_S
        yield picture_of(frame, seconds)
    if count < _SHORTEST_CLIP:
        raise MalformedSequence(
            "the video holds one picture; send footage of somebody walking"
            if count
            else "no picture of the video can be read; export it again"
        )


def picture_of(frame: av.VideoFrame, seconds: float) -> Picture:
    """What libav has decoded, upright and no larger than is used."""
    scale = max(1.0, max(frame.height, frame.width) / _LARGEST_SIDE)
    width, height = round(frame.width / scale), round(frame.height / scale)
    pixels = frame.to_ndarray(
        width=max(1, width), height=max(1, height), format="bgr24", interpolation="AREA"
    )
    turns = round(frame.rotation / 90) % 4
    image = np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
    return Picture(seconds, np.asarray(image, np.uint8), scale)


def thumbnail(image: Image, side: int = 160) -> bytes:
    """A picture as a JPEG whose longer side has so many pixels at most."""
    scale = min(1.0, side / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, 80))[1])

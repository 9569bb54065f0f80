"""Pictures of footage one by one, with their times, from bytes that nobody vouches for.

A clip is never held: a picture is read, looked at, and gone. More than some thirty pictures a
second are thinned out, by their times, so that every camera's walks are alike.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.budget import Budget, DecodeLimits
from models.silhouettes.decode import decode_photos
from models.silhouettes.errors import (
    MalformedSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
)
from models.silhouettes.quality import LEAST_FRAMES
from models.silhouettes.sniff import ARCHIVES, STILLS, VIDEOS, Kind, sniff
from models.silhouettes.video import decode_pictures

Image: TypeAlias = NDArray[np.uint8]
"""Pixels of a picture, uint8 `[h, w, 3]`, blue first as OpenCV has it."""

CLOSEST_S: Final = 1 / 36
"""Seconds from one picture to the next at least: 30 a second stay, and 50 become 25."""

_LARGEST_SIDE: Final = 1280  # pixels; people of a larger picture lose nothing that is used
_UNTIMED_RATE: Final = 25.0  # pictures a second, of a file that does not say
_SHORTEST_CLIP: Final = 2  # pictures of a video
_EARLIER_S: Final = 1.0  # is sought than wanted: indexes go by when pictures are decoded
_PHOTOS: Final = STILLS | ARCHIVES | {Kind.GIF}


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


def read_pictures(
    data: bytes | mmap.mmap,
    limits: FootageLimits,
    frame_rate: float | None = None,
    *,
    from_s: float = 0.0,
    passed: Callable[[], None] = lambda: None,
) -> Iterator[Picture]:
    """Read a video, or a camera's frames as images, turned upright as their metadata ask.

    Args:
        data: the bytes, or a mapped file, of an MP4, AVI or WebM; the bytes of an archive of images
            of one size, in natural order of names, or of an animation.
        limits: what it may cost.
        frame_rate: images a second, 25 when None; a video says its own times.
        from_s: when the first picture is that is wanted, in seconds since the clip's first.
        passed: called for each picture before it that had to be read: many, where a file cannot be
            sought.

    Raises:
        MalformedSequence: it is damaged, or holds no moving pictures.
        UnsupportedSequence: it is no video of an accepted kind.
        SequenceTooLarge: it is over a limit.
    """
    kind = sniff(bytes(data[:512]))
    decoding = DecodeLimits(
        max_frames=limits.max_pictures, max_side=limits.max_side, max_seconds=limits.max_seconds
    )
    budget = Budget(decoding)
    if kind in VIDEOS:
        source = _of_video(data, kind, budget, limits.max_seconds_long, from_s)
    elif kind in _PHOTOS and isinstance(data, bytes):
        source = _of_photos(data, budget, frame_rate or _UNTIMED_RATE)
    else:
        raise UnsupportedSequence(f"{kind.value} is no footage; send an MP4, AVI or WebM video")
    first: float | None = None
    due = -math.inf
    for at, picture in source:
        first = at if first is None else first
        seconds = at - first
        if seconds > limits.max_seconds_long:
            raise SequenceTooLarge(
                f"the footage lasts longer than the {limits.max_seconds_long:g} s that are read; "
                "cut it"
            )
        if seconds < from_s:
            passed()
            continue
        if seconds < due:
            continue
        due = seconds + CLOSEST_S
        yield picture(seconds)


_Timed = Iterator[tuple[float, Callable[[float], Picture]]]
"""When each picture is, and what makes it: most of a fast camera's are never made."""


def _of_video(
    data: bytes | mmap.mmap, kind: Kind, budget: Budget, longest_s: float, from_s: float
) -> _Timed:
    count = 0
    for number, frame in enumerate(_decoded(data, kind, budget, longest_s, from_s)):
        count += 1
        yield (
            frame.time if frame.time is not None else number / _UNTIMED_RATE,
            partial(picture_of, frame),
        )
    if count < _SHORTEST_CLIP:
        raise MalformedSequence(
            "the video holds one picture; send footage of somebody walking"
            if count
            else "no picture of the video can be read; export it again"
        )


def _decoded(
    data: bytes | mmap.mmap, kind: Kind, budget: Budget, longest_s: float, from_s: float
) -> Iterator[av.VideoFrame]:
    """The first picture, and all after it but for those that can be left out before `from_s`."""

    def pictures(begin: float | None = None) -> Iterator[av.VideoFrame]:
        for frame in decode_pictures(data, kind, budget, longest_s, from_s=begin):
            budget.give_back(frame.height * frame.width)
            yield frame

    first = next(pictures(), None) if from_s > _EARLIER_S else None
    if first is not None and first.time is not None:
        sought = pictures(first.time + from_s - _EARLIER_S)
        try:
            at = next(sought, None)
        except SequenceError:  # read from its beginning, it says what is wrong
            at = None
        if at is not None and at.time is not None and 0 < at.time - first.time <= from_s:
            yield from itertools.chain((first, at), sought)
            return
    yield from pictures()


def _of_photos(data: bytes, budget: Budget, frame_rate: float) -> _Timed:
    size: tuple[int, ...] | None = None
    count = 0
    for number, photo in enumerate(decode_photos(data, budget)):
        if photo.ndim != 3:
            raise UnsupportedSequence("arrays are no footage; send images or a video")
        budget.give_back(photo.shape[0] * photo.shape[1])
        count += 1
        size = size or photo.shape
        if photo.shape != size:
            raise MalformedSequence(
                f"image {count} is not as large as those before; send one camera's frames in an "
                "archive, or a video"
            )
        yield number / frame_rate, partial(_picture_of_photo, photo)
    if count < LEAST_FRAMES:
        what = "one photo shows" if count == 1 else f"{count} photos show"
        raise MalformedSequence(
            f"{what} no gait; send a video of somebody walking, or a second or more of a camera's "
            "frames as an archive of images"
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


def _picture_of_photo(photo: Image, seconds: float) -> Picture:
    rows, columns = photo.shape[:2]
    scale = max(1.0, max(rows, columns) / _LARGEST_SIDE)
    if scale > 1:
        size = max(1, round(columns / scale)), max(1, round(rows / scale))
        photo = np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)
    return Picture(seconds, photo, scale)


def thumbnail(image: Image, side: int = 160) -> bytes:
    """A picture as a JPEG whose longer side has so many pixels at most."""
    quality = (cv2.IMWRITE_JPEG_QUALITY, 80)
    return bytes(cv2.imencode(".jpg", shrunk(image, side), quality)[1])


def shrunk(image: Image, side: int) -> Image:
    """A picture, in colours or grey, whose longer side has so many pixels at most."""
    rows, columns = image.shape[:2]
    scale = min(1.0, side / max(rows, columns))
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)

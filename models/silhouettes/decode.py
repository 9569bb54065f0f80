"""Decode the bytes of an upload to frames: any accepted format, from untrusted senders."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.silhouettes.archives import PICKLED, decode_gzip, decode_tar, decode_zip
from models.silhouettes.arrays import decode_npy
from models.silhouettes.budget import Budget, DecodeLimits
from models.silhouettes.errors import MalformedSequence, UnsupportedSequence
from models.silhouettes.images import BRIGHT, decode_image
from models.silhouettes.sniff import STILLS, VIDEOS, Kind, sniff
from models.silhouettes.types import Frame
from models.silhouettes.video import decode_video


def decode(data: bytes, limits: DecodeLimits | None = None) -> list[Frame]:
    """Decode one walk, recognised by its bytes.

    Accepted: zip and tar, also gzipped, of PNG, JPEG, BMP, WebP or TIFF, in natural order of names;
    `.npz` (the array `silhouettes`, else the only one) and `.npy` of uint8 or bool `[s, h, w]`;
    animated GIF, PNG and WebP, TIFF of several pages; MP4, AVI and WebM. A single image is a
    sequence of one frame.

    What becomes of the pixels:

    - JPEG, lossy WebP and video become black and white, split at 127; the rest keeps its greys.
    - A coloured pixel is a label and counts as white; partial transparency is the silhouette.
    - 16 bits become 8.
    - When no pixel of the whole sequence is above 127, the values are labels (0 and 1, class
      numbers), and all but 0 is white.

    Args:
        data: the file's bytes; hostile ones are expected.
        limits: what it may cost; the defaults when None.

    Returns:
        At least one uint8 `[h, w]`; sizes may differ from frame to frame. 0 is background.

    Raises:
        MalformedSequence, UnsupportedSequence, SequenceTooLarge: and no other.
    """
    return decode_within(data, Budget(limits or DecodeLimits()))


def decode_within(data: bytes, budget: Budget) -> list[Frame]:
    """`decode`, spending from a budget that others spend from as well."""
    frames = list(decode_each(data, budget))
    if not any(is_bright(frame) for frame in frames):
        for frame in frames:
            budget.check_time()
            whiten(frame)
    return frames


def is_bright(frame: Frame) -> bool:
    """Whether a frame shows that the values of its sequence are no labels."""
    return int(frame.max()) > BRIGHT


def whiten(frame: Frame) -> None:
    """Make labels white, in place: a second copy would double what decoding holds."""
    np.multiply(frame != 0, np.uint8(255), out=frame)


def decode_each(data: bytes, budget: Budget) -> Iterator[Frame]:
    """`decode` frame by frame, with labels still as they are.

    Who is done with a frame may `give_back` its bytes to the budget.

    Raises:
        SequenceError: as `decode`, once the frame at fault is reached, or the end.
    """
    frames = _decode(data, budget)
    first = next(frames, None)
    if first is None:
        raise MalformedSequence("the file holds no frames")
    yield first
    del first
    yield from frames


def _decode(data: bytes, budget: Budget) -> Iterator[Frame]:
    if not data:
        raise MalformedSequence("the file is empty")
    kind = sniff(data)
    if kind in STILLS or kind is Kind.GIF:
        return decode_image(data, kind, budget)
    if kind in VIDEOS:
        return decode_video(data, kind, budget)
    if kind is Kind.ZIP:
        return decode_zip(data, budget)
    if kind is Kind.TAR:
        return decode_tar(data, budget)
    if kind is Kind.GZIP:
        return decode_gzip(data, budget)
    if kind is Kind.NPY:
        return decode_npy(data, budget)
    if kind is Kind.PICKLE:
        raise UnsupportedSequence(PICKLED)
    raise UnsupportedSequence(
        "not a sequence of silhouettes; send a zip or tar of images, an .npz or .npy array, "
        "an animated GIF, PNG or WebP, or an MP4, AVI or WebM video"
    )

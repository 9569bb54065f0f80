"""Decode the bytes of an upload to frames: any accepted format, from untrusted senders."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np

from models.silhouettes.archives import PICKLED, decode_gzip, decode_tar, decode_zip
from models.silhouettes.arrays import decode_npy
from models.silhouettes.budget import Budget, DecodeLimits
from models.silhouettes.colours import MOST_LABELS
from models.silhouettes.errors import MalformedSequence, UnsupportedSequence
from models.silhouettes.images import BRIGHT, Pixels, Reading, as_photo, as_silhouette, decode_image
from models.silhouettes.sniff import STILLS, VIDEOS, Kind, sniff
from models.silhouettes.types import Frame
from models.silhouettes.video import decode_video

_BORDER = 0.6  # of the border's pixels are background
_NEAR = 0.75  # of the brightest grey: the person of a matte
_PERSON = 0.25  # of a matte's pixels that are not black


def decode(data: bytes, limits: DecodeLimits | None = None) -> list[Frame]:
    """Decode one walk, recognised by its bytes.

    Accepted: zip and tar, also gzipped, of PNG, JPEG, BMP, WebP or TIFF, in natural order of names;
    `.npz` (the array `silhouettes`, the only one, or one a frame) and `.npy`, see `arrays`;
    animated GIF, PNG and WebP, TIFF of several pages; MP4, AVI and WebM. A single image is a
    sequence of one frame.

    What becomes of the pixels:

    - Greys are kept; of JPEG, lossy WebP and video what is nearly black becomes black.
    - Colours, opacity and 16 bits: see `colours`. Images and video are turned as a viewer would.
    - When no pixel of the whole sequence is above 127, the values are labels (0 and 1, class
      numbers), and all but the background's is white; unless they are a dim matte's greys.
    - Black on white becomes white on black.

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
    are_labels = not any(is_bright(frame) for frame in frames)
    for frame in frames:
        budget.check_time()
        if are_labels:
            whiten(frame)
        else:
            put_white_on_black(frame)
    return frames


def is_bright(frame: Frame) -> bool:
    """Whether a frame shows that the values of its sequence are no labels."""
    return int(frame.max()) > BRIGHT


def whiten(frame: Frame) -> bool:
    """Make labels white, in place: a second copy would double what decoding holds.

    A dim matte's greys are no labels; they are stretched. Returns whether the background's label
    was not 0.
    """
    if _is_matte(frame):
        levels = np.arange(256) * (255 / int(frame.max()))
        frame[...] = np.rint(levels.clip(0, 255)).astype(np.uint8)[frame]
        return False
    border = _border(frame)
    labels, counts = np.unique(border, return_counts=True)
    most = int(counts.argmax())
    background = int(labels[most]) if counts[most] > _BORDER * border.size else 0
    if background and int(frame.min()) == background:
        background = 0  # nothing but it
    np.multiply(frame != background, np.uint8(255), out=frame)
    return background != 0


def _is_matte(frame: Frame) -> bool:
    """Whether a frame has more greys than labels would, and many of them near the brightest."""
    pixels = np.ascontiguousarray(frame)
    counts = np.asarray(cv2.calcHist([pixels], [0], None, [256], [0, 256]), np.float32).ravel()
    counts[0] = 0
    brightest = int(frame.max())
    near = counts[math.ceil(_NEAR * brightest) :].sum()
    return bool(np.count_nonzero(counts) > MOST_LABELS and near > _PERSON * counts.sum())


def put_white_on_black(frame: Frame) -> bool:
    """Turn a frame of black on white round, in place, and say whether it was one.

    A person, even cut out closely, reaches little of the frame's border.
    """
    border = _border(frame)
    if np.count_nonzero(border > BRIGHT) <= _BORDER * border.size or frame.min() > BRIGHT:
        return False
    np.subtract(np.uint8(255), frame, out=frame)
    return True


def _border(frame: Frame) -> Frame:
    return np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])


def decode_photos(data: bytes, budget: Budget) -> Iterator[Pixels]:
    """The images of an archive or an animation, or the only one, in colour.

    Yields uint8 `[h, w, 3]`, blue first; arrays among them uint8 `[h, w]`. What is cut out is its
    opacity.

    Raises:
        SequenceError: as `decode_each`.
    """
    return _decode(data, budget, as_photo)


def decode_each(data: bytes, budget: Budget) -> Iterator[Frame]:
    """`decode` frame by frame, with labels still as they are.

    Who is done with a frame may `give_back` its bytes to the budget.

    Raises:
        SequenceError: as `decode`, once the frame at fault is reached, or the end.
    """
    frames = _decode(data, budget, as_silhouette)
    first = next(frames, None)
    if first is None:
        raise MalformedSequence("the file holds no frames")
    yield first
    del first
    yield from frames


def _decode(data: bytes, budget: Budget, read: Reading) -> Iterator[Pixels]:
    if not data:
        raise MalformedSequence("the file is empty")
    kind = sniff(data)
    if kind in STILLS or kind is Kind.GIF:
        return decode_image(data, kind, budget, read=read)
    if kind in VIDEOS:
        return decode_video(data, kind, budget)
    if kind is Kind.ZIP:
        return decode_zip(data, budget, read)
    if kind is Kind.TAR:
        return decode_tar(data, budget, read)
    if kind is Kind.GZIP:
        return decode_gzip(data, budget, read)
    if kind is Kind.NPY:
        return decode_npy(data, budget)
    if kind is Kind.PICKLE:
        raise UnsupportedSequence(PICKLED)
    raise UnsupportedSequence(
        "not a sequence of silhouettes; send a zip or tar of images, an .npz or .npy array, "
        "an animated GIF, PNG or WebP, or an MP4, AVI or WebM video"
    )

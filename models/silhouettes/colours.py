"""What of an image is the silhouette, where it has colours, opacity or more than 8 bits.

- Where an image is partly transparent, its opacity is the silhouette, whatever colours the person
  has; unless all that is opaque is one rectangle, a black and white picture with a margin.
- In colours, the person is what differs from an even background. A few flat colours are labels of
  people or of their parts: they stay apart, as greys above 127. Where the background is not even,
  only what is coloured counts as white.
- 16 bits become 8; a few values above 255 are labels too.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.types import Frame

_COLOURED: Final = 32
"""Channels further apart than this are a colour, not a grey with noise in it."""

_MANY_COLOURED: Final = 0.05  # of what is not background; less is a mark in a grey picture
_EVEN: Final = 0.6  # of the border has the background's colour
_DIFFERS: Final = 8  # from the background, in any channel
_DIFFERS_SMEARED: Final = 16
_RECTANGLE: Final = 0.98  # of its box is opaque
_WHITE, _BLACK = 223, 32
MOST_LABELS: Final = 16


def from_opacity(rgba: NDArray[np.uint8], smeared: bool) -> Frame:
    """One image uint8 `[h, w, 4]` as uint8 `[h, w]`."""
    opacity, colours = np.ascontiguousarray(rgba[..., 3]), rgba[..., :3]
    if opacity.min() == 255:
        return from_colours(colours, smeared)
    opaque = np.asarray(cv2.threshold(opacity, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)
    _, _, width, height = cv2.boundingRect(opaque)
    if width and cv2.countNonZero(opaque) >= _RECTANGLE * width * height:
        grey = from_colours(colours, smeared)
        drawn = grey[opaque > 0]
        white, black = drawn > _WHITE, drawn < _BLACK
        if white.any() and black.any() and np.count_nonzero(white | black) > 0.9 * drawn.size:
            return np.asarray(cv2.bitwise_and(grey, opaque), np.uint8)
    return opacity


def from_colours(rgb: NDArray[np.uint8], smeared: bool) -> Frame:
    """One image uint8 `[h, w, 3]` as uint8 `[h, w]`; `smeared` by a lossy format."""
    if np.array_equal(rgb[..., 0], rgb[..., 1]) and np.array_equal(rgb[..., 0], rgb[..., 2]):
        return np.ascontiguousarray(rgb[..., 0])
    rgb = np.ascontiguousarray(rgb)
    red, green, blue = (np.asarray(channel, np.uint8) for channel in cv2.split(rgb))
    brightest = np.asarray(cv2.max(cv2.max(red, green), blue), np.uint8)
    spread = cv2.subtract(brightest, cv2.min(cv2.min(red, green), blue))
    coloured = np.asarray(spread, np.uint8) > _COLOURED
    count = int(np.count_nonzero(coloured))
    if count == 0:
        return brightest
    least = _DIFFERS_SMEARED if smeared else _DIFFERS
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    background = np.median(border, axis=0)
    even = (np.abs(border - background).max(axis=1) <= least).mean() >= _EVEN
    apart = cv2.split(np.asarray(cv2.absdiff(rgb, np.full_like(rgb, background)), np.uint8))
    person = np.asarray(cv2.max(cv2.max(*apart[:2]), apart[2]), np.uint8) > least
    if not even or count < _MANY_COLOURED * np.count_nonzero(person):
        return np.where(coloured, np.uint8(255), brightest)
    if smeared:
        return person * np.uint8(255)
    exact = red.astype(np.uint32) << 16 | green.astype(np.uint32) << 8 | blue
    if 1 < _count(exact[person]) <= MOST_LABELS:
        # A label for each colour, the same in every frame: 128 to 254.
        codes = (red >> 6) << 5 | (green >> 5) << 2 | blue >> 6
        return np.where(person, np.uint8(127) + np.maximum(codes, 1), np.uint8(0)).astype(np.uint8)
    return person * np.uint8(255)


def narrowed(values: NDArray[np.integer[Any]]) -> Frame:
    """Values of up to 16 bits, none below 0, as uint8."""
    if values.max() <= 0xFF:
        return values.astype(np.uint8)
    if values.max() < 0xFFFF and _count(values[values > 0]) <= MOST_LABELS:
        return np.where(values > 0, 1 + values % 127, 0).astype(np.uint8)
    return (values >> 8).astype(np.uint8)


def _count(values: NDArray[Any]) -> int:
    """How many different ones there are, as far as it matters."""
    some = values[:: max(1, values.size // 2**16)]
    return len(np.unique(some))

"""A person of few rows, enlarged and cut at half before normalisation, which enlarges softly.

Networks have seen the hard outlines of people of a hundred rows. A grey at an edge says where
between two pixels the outline runs, so it is used before it is cut away.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from models.silhouettes.pieces import Box
from models.silhouettes.types import Frame

ENOUGH_ROWS: Final = 128
"""A person of so many rows is not enlarged."""

_ENOUGH_HARD_ROWS: Final = 64  # where no grey says more: as many as normalisation asks for
_AROUND: Final = 3  # pixels around a person that may have its greys
_ROUNDING: Final = 0.6  # pixels by which the corners of pixels without greys are rounded
_AREA = np.ones((2 * _AROUND + 1, 2 * _AROUND + 1), np.uint8)


def enlarged(window: Frame, chosen: Frame, body: Box) -> Frame | None:
    """A person of few rows, enlarged to at least `ENOUGH_ROWS`, then cut at half.

    Args:
        window: part of a frame, uint8 `[h, w]`.
        chosen: 255 where the person is in it, `[h, w]`.
        body: the box around that.

    Returns:
        0 and 255, `[at least ENOUGH_ROWS or so, w]`; None if the window has enough rows for one
        without greys, or too little of the person remains.
    """
    columns = slice(max(0, body.left - _AROUND), body.right + _AROUND)
    rows = slice(max(0, body.top - _AROUND), body.bottom + _AROUND)
    window, chosen = window[rows, columns], chosen[rows, columns]
    if body.height >= _ENOUGH_HARD_ROWS and not _has_greys(window):
        return None  # as below, sooner
    around = np.asarray(cv2.dilate(chosen, _AREA), np.uint8)
    person = np.asarray(cv2.bitwise_and(window, around), np.uint8)
    has_greys = _has_greys(person)
    if not has_greys and body.height >= _ENOUGH_HARD_ROWS:
        return None
    times = -(-ENOUGH_ROWS // body.height)
    padded = np.pad(person, _AROUND)
    large = cv2.resize(padded, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    if not has_greys:
        large = cv2.GaussianBlur(large, (0, 0), _ROUNDING * times)
    hard = np.asarray(cv2.threshold(large, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)
    _, top, _, height = cv2.boundingRect(hard)
    return hard[top : top + height] if height else None


def _has_greys(window: Frame) -> bool:
    return cv2.countNonZero(np.asarray(cv2.inRange(window, 1, 254), np.uint8)) > 0

"""Boxes in pictures, and the square windows that masks are made in."""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE: Final = 160
"""Rows and columns of a window's pixels and masks."""


class Box(NamedTuple):
    """A rectangle in pixels of a picture; it may reach beyond its borders."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The first column that is not in it."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The first row that is not in it."""
        return self.top + self.height

    @property
    def area(self) -> float:
        """Its pixels."""
        return self.width * self.height

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of its middle."""
        return self.left + self.width / 2, self.top + self.height / 2

    def moved(self, right: float, down: float) -> Self:
        """The same box elsewhere."""
        return self._replace(left=self.left + right, top=self.top + down)

    def shared(self, other: Box) -> float:
        """Pixels that are in both."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)

    def overlap(self, other: Box) -> float:
        """Intersection over union, in [0, 1]."""
        shared = self.shared(other)
        return shared / max(self.area + other.area - shared, 1e-9)

    def towards(self, other: Box, share: float) -> Box:
        """Between this box (share 0) and another (share 1)."""
        return Box(*(mine + share * (its - mine) for mine, its in zip(self, other, strict=True)))

    def window(self, margin: float) -> Box:
        """The square around it, `margin` times as large as its longer side."""
        side = max(self.width, self.height, 1.0) * margin
        column, row = self.centre
        return Box(column - side / 2, row - side / 2, side, side)


def cut_out(image: NDArray[np.uint8], window: Box) -> NDArray[np.uint8]:
    """The pixels of a square window, uint8 `[160, 160, ...]`; borders go on as they end."""
    left, top = round(window.left), round(window.top)
    side = max(2, round(window.width))
    rows, columns = image.shape[:2]
    inside = image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    if inside.size == 0:
        return np.zeros((SIDE, SIDE, *image.shape[2:]), np.uint8)
    missing = (
        max(0, -top),
        max(0, top + side - rows),
        max(0, -left),
        max(0, left + side - columns),
    )
    if any(missing):
        inside = np.asarray(cv2.copyMakeBorder(inside, *missing, cv2.BORDER_REPLICATE), np.uint8)
    how = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(inside, (SIDE, SIDE), interpolation=how), np.uint8)


def in_window(box: Box, window: Box) -> Box:
    """A box of the picture in a window's own pixels."""
    scale = SIDE / window.width
    return Box(
        (box.left - window.left) * scale,
        (box.top - window.top) * scale,
        box.width * scale,
        box.height * scale,
    )


def out_of_window(box: Box, window: Box) -> Box:
    """A box in a window's pixels in those of the picture."""
    scale = window.width / SIDE
    return Box(
        window.left + box.left * scale,
        window.top + box.top * scale,
        box.width * scale,
        box.height * scale,
    )

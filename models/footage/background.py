"""What stands still in a clip: where nobody needs to be looked for, and whose pixels are whose.

`Background` is a second opinion on which pixels are a person's: a running picture of the scene,
kept from the pixels outside of everybody's boxes, so that people never become part of it. Where the
camera moves it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.footage.boxes import Box, cut_out
from models.footage.pictures import Image, shrunk

_LARGEST_SIDE: Final = 480  # pixels of the scene that is kept
_ROOM: Final = 1.25  # around people, whose shadows and feet a box may miss
_SLOWEST: Final = 0.05  # share of a new picture in the scene, once it is known
_KNOWN: Final = 4  # pictures in which a pixel was free
_LIKELY_NOISE: Final = 6.0  # grey levels, before there is an estimate
_OUTLIER: Final = 5.0  # times the noise
_CHANGED: Final = 8  # pictures in a row; then the scene is another one there
_STILL: Final = 0.85  # of the pixels that are free and known are as they were
_SMALL_SIDE: Final = 80  # pixels of the picture that says whether a scene is still empty
_NOTHING: Final = 7  # grey levels, of 3 x 3 of those; compression and noise are below
_LONGEST_TRUST: Final = 10  # pictures, after which somebody is looked for in any case


class EmptyScene:
    """A scene in which nobody was found: as long as nothing changes, nobody is in it."""

    def __init__(self) -> None:
        self._picture: Image | None = None
        self._trusted = 0

    def holds(self, image: Image) -> bool:
        """Whether a picture uint8 `[h, w, 3]` holds nothing that the empty one did not."""
        if self._picture is None or self._trusted >= _LONGEST_TRUST:
            return False
        small = _small(image)
        if small.shape != self._picture.shape:
            return False
        self._trusted += 1
        return int(cv2.absdiff(small, self._picture).max()) < _NOTHING

    def learn(self, image: Image, *, empty: bool) -> None:
        """Take a picture that was looked at."""
        self._picture, self._trusted = _small(image) if empty else None, 0


class Background:
    """The scene behind the people of one clip."""

    def __init__(self) -> None:
        self._scene = np.zeros((0, 0, 3), np.float32)
        self._noise = np.zeros((0, 0), np.float32)
        self._count = np.zeros((0, 0), np.uint16)
        self._odd = np.zeros((0, 0), np.uint8)
        self._scale = 1.0

    def see(self, image: Image, people: Iterable[Box]) -> None:
        """Learn from a picture uint8 `[h, w, 3]`, but where people are."""
        self._scale = min(1.0, _LARGEST_SIDE / max(image.shape[:2]))
        small = image
        if self._scale < 1:
            small = np.asarray(
                cv2.resize(
                    image, None, fx=self._scale, fy=self._scale, interpolation=cv2.INTER_AREA
                ),
                np.uint8,
            )
        if small.shape != self._scene.shape:
            self._forget(small)
        free = np.ones(small.shape[:2], bool)
        for box in people:
            left, top, right, bottom = (round(edge * self._scale) for edge in _widened(box))
            free[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = False
        pixels = small.astype(np.float32)
        change = pixels - self._scene
        size = np.abs(change).max(axis=2)
        known = self._count >= _KNOWN
        odd = known & (size > _OUTLIER * self._noise + 4)
        judged = free & known
        if judged.sum() > 0.05 * judged.size and (odd & judged).sum() > (1 - _STILL) * judged.sum():
            self._forget(small)
            return
        self._odd = np.where(free & odd, self._odd + 1, np.where(free, 0, self._odd)).astype(
            np.uint8
        )
        other = free & (self._odd >= _CHANGED)
        self._count[other] = 0
        learn = free & (~odd | other)
        first = learn & (self._count == 0)
        self._scene[first] = pixels[first]
        self._noise[first] = _LIKELY_NOISE
        self._odd[first] = 0
        share = np.where(learn & ~first, np.maximum(1 / (self._count + 1.0), _SLOWEST), 0)
        self._scene += (share[..., None] * change).astype(np.float32)
        self._noise += (share * (size - self._noise)).astype(np.float32)
        np.clip(self._noise, 1.0, None, out=self._noise)
        self._count[learn] += 1

    def difference(self, pixels: Image, window: Box) -> NDArray[np.float32] | None:
        """How far each pixel of a window is from the scene, in multiples of its noise.

        Args:
            pixels: uint8 `[160, 160, 3]`, the window cut out of a picture.
            window: where it was.

        Returns:
            float32 `[160, 160]`, nan where the scene is unknown; None if it is so in most of it.
        """
        small = Box(*(value * self._scale for value in window))
        known = cut_out((self._count >= _KNOWN).astype(np.uint8) * 255, small) > 127
        if known.mean() < 0.5:
            return None
        scene = cut_out(np.clip(np.rint(self._scene), 0, 255).astype(np.uint8), small)
        noise = cut_out(np.clip(np.rint(self._noise * 8), 0, 255).astype(np.uint8), small)
        apart = cv2.blur(cv2.absdiff(pixels, scene), (3, 3)).max(axis=2).astype(np.float32)
        return np.where(known, apart / (noise / np.float32(8) + 1), np.float32(np.nan))

    def _forget(self, small: Image) -> None:
        self._scene = small.astype(np.float32)
        self._noise = np.full(small.shape[:2], _LIKELY_NOISE, np.float32)
        self._count = np.zeros(small.shape[:2], np.uint16)
        self._odd = np.zeros(small.shape[:2], np.uint8)


def _small(image: Image) -> Image:
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
    return np.asarray(cv2.blur(shrunk(grey, _SMALL_SIDE), (3, 3)), np.uint8)


def _widened(box: Box) -> tuple[float, float, float, float]:
    column, row = box.centre
    wide, high = max(box.width, box.height / 3) * _ROOM / 2, box.height * _ROOM / 2
    return column - wide, row - high, column + wide, row + high

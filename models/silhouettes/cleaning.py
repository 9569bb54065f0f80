"""Takes away what segmenters leave around a person, or in place of one.

The person is the largest component after a small closing, with the pieces a gap has cut off above
and below it. Frames in which the side border cuts the person, or in which what was found is much
smaller or larger than in the frames around, are dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.frame import Frame

EMPTY = "empty"
BORDER = "border"
FRAGMENT = "fragment"
OUTLIER = "outlier"

_FOREGROUND = 127
_LEAST_AREA = 40  # pixels; what normalisation takes for empty is 39
_LEAST_HEIGHT = 12  # rows; below that a box of pixels could be anything
_WINDOW = 21  # frames of the running median, nearly a gait cycle at 25 frames a second
_HEIGHTS = (0.8, 1.25)  # of the running median; beyond is a fragment, or an outlier
_AREAS = (0.6, 1.6)
_LEAST_PIECE = 0.01  # of the area found, to be a part of the person
_MOST_PIECES = 256  # that may be one; joining them takes time in the square of their number

# How far off a cut-off head may lie, as a part of the height found; how far its middle from the
# body's, as a part of half the width; and its least area. Legs, thin and dark, go missing most.
_HEAD_GAP = 0.18
_HEAD_ASIDE = 0.6
_HEAD_AREA = 0.03
_LEGS_GAP = 0.3


class Size(NamedTuple):
    """How large a person is in a frame, in rows and in pixels."""

    height: int
    area: int


class Person(NamedTuple):
    """One person found in one frame.

    Attributes:
        strip: uint8 `[rows of the person, columns of the frame]`, nothing but the person in it.
        size: the person's.
    """

    strip: Frame
    size: Size


class Cleaned(NamedTuple):
    """The frames that remain, in order, and how many went for each reason."""

    strips: list[Frame]
    dropped: dict[str, int]


class _Box(NamedTuple):
    left: int
    top: int
    width: int
    height: int
    area: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height


def clean(frames: Sequence[Frame]) -> Cleaned:
    """Find the person in each frame and drop the frames that would mislead.

    Args:
        frames: uint8 `[h, w]` each, of any sizes.

    Returns:
        Strips as wide as their frames, ready for `normalise`; `dropped` counts `empty`, `border`,
        `fragment` and `outlier`.
    """
    found = [find_person(frame) for frame in frames]
    people = [person for person in found if isinstance(person, Person)]
    dropped = Counter(reason for reason in found if isinstance(reason, str))
    reasons = unlike_neighbours([person.size for person in people])
    dropped.update(reason for reason in reasons if reason)
    kept = [person.strip for person, reason in zip(people, reasons, strict=True) if not reason]
    return Cleaned(kept, dict(dropped))


def unlike_neighbours(sizes: Sequence[Size]) -> list[str]:
    """For each frame's person, in order, why it is dropped: `fragment`, `outlier` or nothing."""
    if not sizes:
        return []
    heights = _against_neighbours(np.array([size.height for size in sizes]))
    areas = _against_neighbours(np.array([size.area for size in sizes]))
    small = (heights < _HEIGHTS[0]) | (areas < _AREAS[0])
    large = (heights > _HEIGHTS[1]) | (areas > _AREAS[1])
    reasons: list[str] = np.select([small, large], [FRAGMENT, OUTLIER], "").tolist()
    return reasons


def find_person(frame: Frame) -> Person | str:
    """Cut the person out of one frame uint8 `[h, w]`, or name the reason why there is none."""
    mask = (frame > _FOREGROUND).view(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if cv2.countNonZero(mask) < _LEAST_AREA:
        return EMPTY
    window = np.s_[top : top + height, left : left + width]
    closed = _close(mask[window], frame.shape[0])
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    pieces, body = _pieces(stats[:count])
    if body.height < max(_LEAST_HEIGHT, frame.shape[1] // 64) or body.area < _LEAST_AREA:
        return FRAGMENT
    if _is_cut(body.left + left, body.right + left, body.height, frame.shape):
        return BORDER
    rows = slice(body.top, body.bottom)
    is_person = np.zeros(count, np.bool_)
    is_person[pieces] = True
    strip = np.zeros((body.height, frame.shape[1]), np.uint8)
    strip[:, left : left + width] = _repair(frame[window][rows], is_person[labels[rows]])
    return Person(strip, Size(body.height, body.area))


def _close(mask: Frame, rows: int) -> Frame:
    """Close cracks of about a hundredth of the frame's rows; nothing wraps in from the edges."""
    radius = min(max(1, round(rows / 120)), 7)
    padded = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_CONSTANT, value=0)
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)
    return np.ascontiguousarray(closed[radius:-radius, radius:-radius], dtype=np.uint8)


def _pieces(stats: NDArray[Any]) -> tuple[list[int], _Box]:
    """The labels of the person's pieces, and the box around them.

    They are the largest component and, nearest first, what a gap has cut off above or below it. Of
    the others the largest `_MOST_PIECES` are looked at, however much noise there is.
    """
    areas = stats[1:, cv2.CC_STAT_AREA]  # row 0 is the background
    largest = 1 + int(areas.argmax())
    body = _Box(*map(int, stats[largest]))
    labels = 1 + np.flatnonzero(areas >= _LEAST_PIECE * body.area)
    if len(labels) > _MOST_PIECES:
        by_area = np.argsort(-stats[labels, cv2.CC_STAT_AREA], kind="stable")
        labels = np.sort(labels[by_area[:_MOST_PIECES]])
    loose = {int(label): _Box(*map(int, stats[label])) for label in labels if label != largest}
    pieces = [largest]
    while loose:
        nearest = min(loose, key=lambda label: _gap(body, loose[label]))
        box = loose.pop(nearest)
        if _gap(body, box) > 1:
            break
        pieces.append(nearest)
        body = _join([body, box])
    return pieces, body


def _gap(body: _Box, piece: _Box) -> float:
    """How far a piece lies above or below the body, 1 being the furthest that still belongs."""
    if piece.width > body.width:
        return np.inf
    aside = abs(2 * (piece.left - body.left) + piece.width - body.width) / body.width
    if piece.top >= body.top:
        below = (piece.top - body.bottom) / (_LEGS_GAP * body.height)
        return below if aside <= 1 else np.inf
    is_head = aside <= _HEAD_ASIDE and piece.area >= _HEAD_AREA * body.area
    return (body.top - piece.bottom) / (_HEAD_GAP * body.height) if is_head else np.inf


def _join(boxes: list[_Box]) -> _Box:
    left, top = min(box.left for box in boxes), min(box.top for box in boxes)
    right, bottom = max(box.right for box in boxes), max(box.bottom for box in boxes)
    return _Box(left, top, right - left, bottom - top, sum(box.area for box in boxes))


def _is_cut(left: int, right: int, height: int, shape: tuple[int, ...]) -> bool:
    """Whether the side border cuts the person; one that fills the frame was cropped to, not cut."""
    rows, columns = shape
    sides = (left <= 0) + (right >= columns)
    return sides > 0 and not (sides == 2 and height >= 0.9 * rows)


def _repair(frame: Frame, chosen: NDArray[np.bool_]) -> Frame:
    """The frame's own greys on and right beside the component, white where it closed a crack."""
    around = cv2.dilate(chosen.view(np.uint8), np.ones((3, 3), np.uint8))
    values = np.where(around, frame, np.uint8(0))
    values[chosen & (frame <= _FOREGROUND)] = 255
    return values


def _against_neighbours(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each value over the median of the `_WINDOW` values around it."""
    half = _WINDOW // 2
    padded = np.pad(
        values.astype(np.float64), half, mode="reflect" if len(values) > half else "edge"
    )
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, _WINDOW), axis=1)
    return values / medians

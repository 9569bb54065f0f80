"""Takes away what segmenters leave around a person, or in place of one.

The person is the largest component after a small closing, with the pieces a gap has cut off above
and below it; greys are cut at half, those of few rows after they are enlarged. Frames in which the
side border cuts the person, or in which what was found is much smaller or larger than in the frames
around, are dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.budget import Budget
from models.silhouettes.pieces import Box, join_pieces
from models.silhouettes.resolution import ENOUGH_ROWS, enlarged
from models.silhouettes.types import Frame

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
_MOST_PEOPLE = 4
_OTHER_HEIGHT = 0.5  # of the largest person's
_OTHER_AREA = 0.15
_UPRIGHT = 1.3  # rows for each column
_SQUARES = [np.ones((2 * radius + 1, 2 * radius + 1), np.uint8) for radius in range(8)]


class Size(NamedTuple):
    """Rows that a person takes, and pixels."""

    height: int
    area: int


class Person(NamedTuple):
    """One person found in one frame.

    Attributes:
        strip: 0 and 255, uint8 `[h, w]`, nothing but the person in it: in rows of the person and
            columns of the frame, or enlarged if those are few.
        size: how large the person is in the frame.
        place: where in the frame.
    """

    strip: Frame
    size: Size
    place: Box


class Cleaned(NamedTuple):
    """The frames that remain, in order, how many went for each reason, and which remain."""

    strips: list[Frame]
    dropped: dict[str, int]
    kept: list[int]


def clean(frames: Sequence[Frame]) -> Cleaned:
    """Find the person in each frame and drop the frames that would mislead.

    Args:
        frames: uint8 `[h, w]` each, of any sizes.

    Returns:
        Strips as wide as their frames, ready for `normalise`; `dropped` counts `empty`, `border`,
        `fragment` and `outlier`, `kept` are places among `frames`.
    """
    found = [find_person(frame) for frame in frames]
    dropped = Counter(reason for reason in found if isinstance(reason, str))
    people = [(place, one) for place, one in enumerate(found) if isinstance(one, Person)]
    reasons = find_unsteady([person.size for _, person in people])
    dropped.update(reason for reason in reasons if reason)
    steady = [found for found, reason in zip(people, reasons, strict=True) if not reason]
    strips = [person.strip for _, person in steady]
    return Cleaned(strips, dict(dropped), [place for place, _ in steady])


def find_unsteady(sizes: Sequence[Size]) -> list[str]:
    """For each person of a walk, why the size does not fit the frames around; empty if it does."""
    if not sizes:
        return []
    heights = _against_neighbours(np.array([size.height for size in sizes]))
    areas = _against_neighbours(np.array([size.area for size in sizes]))
    small = (heights < _HEIGHTS[0]) | (areas < _AREAS[0])
    large = (heights > _HEIGHTS[1]) | (areas > _AREAS[1])
    return [
        FRAGMENT if is_small else OUTLIER if is_large else ""
        for is_small, is_large in zip(small, large, strict=True)
    ]


def find_person(frame: Frame, budget: Budget | None = None) -> Person | str:
    """Cut the largest person out of one frame uint8 `[h, w]`, or name the reason why there is none.

    Raises:
        SequenceTooLarge: the budget's time is spent.
    """
    return find_people(frame, budget)[0]


def find_people(frame: Frame, budget: Budget | None = None) -> list[Person | str]:
    """The largest person, as `find_person`, and others who may be meant as well.

    Raises:
        SequenceTooLarge: the budget's time is spent.
    """
    left, top, window = _crop(frame)
    if window.size < _LEAST_AREA:
        return [EMPTY]
    mask = np.asarray(cv2.threshold(window, _FOREGROUND, 255, cv2.THRESH_BINARY)[1], np.uint8)
    if cv2.countNonZero(mask) < _LEAST_AREA:
        return [EMPTY]
    # Greys may reach further than what is bright.
    bright_left, bright_top, width, height = cv2.boundingRect(mask)
    mask = mask[bright_top : bright_top + height, bright_left : bright_left + width]
    left, top = left + bright_left, top + bright_top
    found: list[Person | str] = []
    for body, chosen in _find_bodies(_close(mask, frame.shape[0]), budget):
        place = body.moved(left, top)
        if body.height < max(_LEAST_HEIGHT, frame.shape[1] // 64) or body.area < _LEAST_AREA:
            found.append(FRAGMENT)
        elif _is_cut(place.left, place.right, body.height, frame.shape):
            found.append(BORDER)
        else:
            found.append(_cut_out(frame, left, top, body, chosen))
    return found[:1] + [other for other in found[1:] if isinstance(other, Person)]


def _cut_out(frame: Frame, left: int, top: int, body: Box, chosen: Frame) -> Person:
    """The person in the pixels chosen in a window that begins at a column and a row of a frame."""
    place, size = body.moved(left, top), Size(body.height, body.area)
    rows, columns = chosen.shape
    if body.height < ENOUGH_ROWS:
        strip = enlarged(frame[top : top + rows, left : left + columns], chosen, body)
        if strip is not None:
            return Person(strip, size, place)
    strip = np.zeros((body.height, frame.shape[1]), np.uint8)
    strip[:, left : left + columns] = chosen[body.top : body.bottom]
    return Person(strip, size, place)


def _crop(frame: Frame) -> tuple[int, int, Frame]:
    """What is not black in a frame: its first column and row, and the pixels in a box around it.

    Sums of rows and columns tell it sooner than `cv2.boundingRect` does.
    """
    rows = np.flatnonzero(cv2.reduce(frame, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S))
    if len(rows) == 0:
        return 0, 0, frame[:0]
    frame = frame[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(cv2.reduce(frame, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S))
    return int(columns[0]), int(rows[0]), frame[:, columns[0] : columns[-1] + 1]


def _find_bodies(closed: Frame, budget: Budget | None) -> Iterator[tuple[Box, Frame]]:
    """Boxes around the largest person in a mask that touches all four sides, and their pixels.

    Others follow who are not much smaller, and upright.

    Args:
        closed: uint8 `[h, w]`, 255 where there is anything.
        budget: whose time to keep to.
    """
    if cv2.connectedComponents(closed, connectivity=8)[0] == 2:
        # Background and one component: most frames. Statistics cost more than labels.
        rows, columns = closed.shape
        yield Box(0, 0, columns, rows, cv2.countNonZero(closed)), closed
        return
    # Labels of 16 bits take two thirds of the time; there are fewer labels than pixels.
    depth = cv2.CV_16U if closed.size < 2**16 else cv2.CV_32S
    _, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8, ltype=depth)
    stats = stats[1:]  # row 0 is the background
    count = len(stats)
    numbers = np.arange(1, count + 1)
    first: Box | None = None
    for _ in range(_MOST_PEOPLE):
        pieces, body = join_pieces(stats, budget)
        if first and not _may_be_meant(body, first):
            return
        first = first or body
        yield body, _select(labels, numbers[pieces].tolist(), count + 2)
        left_over = np.ones(len(stats), np.bool_)
        left_over[pieces] = False
        left_over &= stats[:, 4] >= _OTHER_AREA * first.area
        stats, numbers = stats[left_over], numbers[left_over]
        if len(stats) == 0:
            return


def _may_be_meant(body: Box, first: Box) -> bool:
    """Whether somebody beside the largest person is large enough, and upright."""
    return body.height >= max(_OTHER_HEIGHT * first.height, _UPRIGHT * body.width)


def _select(labels: NDArray[Any], chosen: list[int], count: int) -> Frame:
    """255 where a label `[h, w]` of `count` is one of those chosen."""
    if len(chosen) == 1:
        return np.asarray(cv2.inRange(labels, chosen[0], chosen[0]), np.uint8)
    table = np.zeros(count, np.uint8)
    table[chosen] = 255
    # Row by row: a table is read with 64-bit numbers, which all rows at once would be copied to.
    selected = np.empty(labels.shape, np.uint8)
    for row, into in zip(labels, selected, strict=True):
        np.take(table, row, out=into)
    return selected


def _close(mask: Frame, rows: int) -> Frame:
    """Close cracks of about a hundredth of the frame's rows; nothing wraps in from the edges."""
    radius = min(max(1, round(rows / 120)), len(_SQUARES) - 1)
    padded = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _SQUARES[radius])
    return np.asarray(closed[radius:-radius, radius:-radius], np.uint8)


def _is_cut(left: int, right: int, height: int, shape: tuple[int, ...]) -> bool:
    """Whether the side border cuts the person; one that fills the frame was cropped to, not cut."""
    rows, columns = shape
    sides = (left <= 0) + (right >= columns)
    return sides > 0 and not (sides == 2 and height >= 0.9 * rows)


def _against_neighbours(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each value over the median of the `_WINDOW` values around it."""
    half = _WINDOW // 2
    padded = np.pad(
        values.astype(np.float64), half, mode="reflect" if len(values) > half else "edge"
    )
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, _WINDOW), axis=1)
    return values / medians

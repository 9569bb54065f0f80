"""Which components of a frame make up the person: the largest, and what a gap has cut off.

Pieces join one at a time, nearest first, because each that joins moves the limits for the others.
Hostile frames have tens of thousands, so none is looked at again for every one that joins: a piece
below waits until the body has grown to it, and only grows nearer; of pieces above, which may go out
of reach again, few can join before what has joined outweighs every one of them.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.silhouettes.budget import Budget

_LEAST_PIECE = 0.01  # of the area of the largest, to be a part of the person

# How far off a cut-off head may lie, as a part of the height found; how far its middle from the
# body's, as a part of half the width; and its least area. Legs, thin and dark, go missing most.
_HEAD_GAP = 0.18
_HEAD_ASIDE = 0.6
_HEAD_AREA = 0.03
_LEGS_GAP = 0.3

_OFTEN = 256  # pieces between two looks at the clock


class Box(NamedTuple):
    """What is around a component, in rows and columns, and its pixels."""

    left: int
    top: int
    right: int
    bottom: int
    area: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    def moved(self, right: int, down: int) -> Box:
        """The box so many columns and rows further on."""
        return Box(
            self.left + right, self.top + down, self.right + right, self.bottom + down, self.area
        )

    def joined(self, other: Box) -> Box:
        """The box around both."""
        return Box(
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
            self.area + other.area,
        )


def join_pieces(stats: NDArray[Any], budget: Budget | None = None) -> tuple[list[int], Box]:
    """Find the components of the person.

    A piece belongs when it is no wider than the body, lies within the body's columns by its middle,
    and is not far below it; or not far above it, more nearly in its middle and of a head's size.

    Args:
        stats: integers `[k, 5]`: left, top, width, height and area of each component, k >= 1.
        budget: whose time to keep to.

    Returns:
        Rows of `stats`, the largest component's first, and the box around them all.
    """
    areas = stats[:, 4]
    largest = int(areas.argmax())
    left, top, width, height, area = stats[largest].tolist()
    body = Box(left, top, left + width, top + height, area)
    chosen = [largest]
    numbers = (areas >= _LEAST_PIECE * area).nonzero()[0]
    if len(numbers) == 1:
        return chosen, body
    numbers = numbers[numbers != largest]
    boxes: NDArray[np.int64] = stats[numbers].astype(np.int64)
    boxes[:, 2:4] += boxes[:, :2]  # right and bottom instead of width and height
    pieces = [Box(*row) for row in boxes.tolist()]
    below, above = _Below(boxes, body), _Above(boxes)
    while True:
        legs_gap, legs = below.nearest(body)
        head_gap, head = above.nearest(body)
        gap, nearest = min((legs_gap, legs), (head_gap, head))
        if gap > 1:
            return chosen, body
        below.remove(nearest)
        above.remove(nearest)
        chosen.append(int(numbers[nearest]))
        body = body.joined(pieces[nearest])
        if budget and len(chosen) % _OFTEN == 0:
            budget.check_time()


class _Below:
    """Pieces that start at or below the body's top.

    The body only grows, so a piece that has come into its reach stays there: each passes four gates
    (width, top, and the two sides) one after another, each a heap of those that still wait there.
    """

    def __init__(self, boxes: NDArray[np.int64], body: Box) -> None:
        left, top, right, _, _ = boxes.T
        middle = left + right  # twice
        keys = np.stack([right - left, -top, -middle, middle])
        self._keys: list[list[int]] = keys.tolist()
        self._tops: list[int] = top.tolist()
        limits = np.array(_reach(body))
        near = (limits >= keys.T).all(axis=1)
        # Sorted lists are heaps.
        self._ready = sorted((self._tops[piece], piece) for piece in np.flatnonzero(near).tolist())
        far = sorted((self._keys[0][piece], piece) for piece in np.flatnonzero(~near).tolist())
        self._gates: list[list[tuple[int, int]]] = [far, [], [], []]
        self._taken = [False] * len(boxes)

    def nearest(self, body: Box) -> tuple[float, int]:
        """The gap to the nearest piece, 1 being the furthest that belongs, and its number."""
        for place, (gate, limit) in enumerate(zip(self._gates, _reach(body), strict=True)):
            while gate and gate[0][0] <= limit:
                _, piece = heapq.heappop(gate)
                if place + 1 < len(self._gates):
                    heapq.heappush(self._gates[place + 1], (self._keys[place + 1][piece], piece))
                else:
                    heapq.heappush(self._ready, (self._tops[piece], piece))
        while self._ready and self._taken[self._ready[0][1]]:
            heapq.heappop(self._ready)
        if not self._ready:
            return np.inf, 0
        top, piece = self._ready[0]
        return (top - body.bottom) / (_LEGS_GAP * body.height), piece

    def remove(self, piece: int) -> None:
        """Take a piece out; one that still waits at a gate may have come by the other way."""
        self._taken[piece] = True


def _reach(body: Box) -> tuple[int, int, int, int]:
    return body.width, -body.top, -2 * body.left, 2 * body.right


class _Above:
    """Pieces that start above the body's top, lowest first."""

    def __init__(self, boxes: NDArray[np.int64]) -> None:
        self._order = np.argsort(-boxes[:, 3], kind="stable")
        self._boxes = boxes[self._order]
        self._rising = -self._boxes[:, 3]
        self._places = np.empty(len(boxes), np.int64)
        self._places[self._order] = np.arange(len(boxes))
        self._largest = int(boxes[:, 4].max())
        self._free = np.ones(len(boxes), np.bool_)

    def nearest(self, body: Box) -> tuple[float, int]:
        """The gap to the nearest piece, 1 being the furthest that belongs, and its number."""
        least_area = _HEAD_AREA * body.area
        if self._largest < least_area:
            return np.inf, 0
        reach = _HEAD_GAP * body.height
        end = int(np.searchsorted(self._rising, reach - body.top + 1, side="right"))
        left, top, right, bottom, area = self._boxes[:end].T
        aside = np.abs(left + right - (body.left + body.right)) / body.width
        heads = np.flatnonzero(
            self._free[:end]
            & (top < body.top)
            & (area >= least_area)
            & (right - left <= body.width)
            & (aside <= _HEAD_ASIDE)
        )
        if len(heads) == 0:
            return np.inf, 0
        first = heads[0]
        return (body.top - int(bottom[first])) / reach, int(self._order[first])

    def remove(self, piece: int) -> None:
        """Take a piece out."""
        self._free[self._places[piece]] = False

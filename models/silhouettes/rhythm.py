"""Frames that are no part of an even walk: repeats, too many of them a second, people who stand.

A network looks at some thirty frames at a time and has seen 12 to 30 of them a second; up to 100
change little. What follows is told from the legs, because files rarely say the camera's rate.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.quality import LEAST_FRAMES, Legs
from models.silhouettes.types import Silhouettes

REPEATED, TOO_MANY, STANDING = "repeated", "too_many", "standing"

_SAME: Final = 0.35  # mean difference of greys; of walks at 200 frames a second 1 in 100 has less
_MANY_REPEATS: Final = 0.3  # of the frames

_PART_OF_WAY: Final = 0.7  # of the largest distance that legs come to
_USUAL_FRAMES: Final = 3  # in which they come that far at 25 frames a second; to 8 in slow walks
_MANY_FRAMES: Final = 9
_SLOW_STEP: Final = 0.15  # from one frame to the next, of the largest distance
_LONGEST_STEP: Final = 35  # frames in which legs come near again; at 25 a second in 13
_DIP: Final = 0.08

_AROUND: Final = 8  # frames to either side
_STILL: Final = 0.25  # legs change no more; walks 0.24 at the least, seen along the way
_HARDLY: Final = 0.35  # for who stays in place
_IN_PLACE: Final = 0.04  # of the height
_LEAST_STAND: Final = 10  # frames


class Place(NamedTuple):
    """Where a person is in each frame, `[s]` each: the middle's column, and rows of the person."""

    column: NDArray[np.float64]
    height: NDArray[np.float64]

    def of(self, kept: NDArray[np.intp]) -> Place:
        """The same for some frames."""
        return Place(self.column[kept], self.height[kept])


class Rhythm(NamedTuple):
    """Which frames make an even walk, and their legs.

    Attributes:
        kept: numbers of frames.
        dropped: how many went for each reason.
        issues: codes for that.
        legs: those of the frames that remain.
    """

    kept: NDArray[np.intp]
    dropped: dict[str, int]
    issues: list[str]
    legs: Legs


def find_even(silhouettes: Silhouettes, place: Place | None) -> Rhythm:
    """Find the frames of a normalised sequence uint8 `[s, 64, 64]` in which somebody walks evenly.

    Args:
        silhouettes: at least two.
        place: where the person is, if the frames are all of one camera that stands still.
    """
    kept = np.arange(len(silhouettes))
    dropped: dict[str, int] = {}
    issues = []

    def keeps(these: NDArray[np.intp], reason: str, code: str) -> bool:
        nonlocal kept
        if not LEAST_FRAMES <= len(these) < len(kept):
            return False
        dropped[reason] = len(kept) - len(these)
        issues.append(code)
        kept = kept[these]
        return True

    fresh = np.flatnonzero(~_repeats(silhouettes))
    if len(fresh) <= (1 - _MANY_REPEATS) * len(kept):
        keeps(fresh, REPEATED, "stands" if _is_one_stand(fresh, len(kept)) else "frame_rate")
    legs = Legs(silhouettes[kept])
    if keeps(np.arange(0, len(kept), _times_too_many(legs)), TOO_MANY, "frame_rate"):
        legs = Legs(silhouettes[kept])
    walking = _walking(legs, place.of(kept) if place else None)
    if keeps(np.flatnonzero(walking), STANDING, "stands"):
        legs = Legs(silhouettes[kept])
    return Rhythm(kept, dropped, list(dict.fromkeys(issues)), legs)


def _repeats(silhouettes: Silhouettes) -> NDArray[np.bool_]:
    """Which frames are the one before once more."""
    repeats = np.zeros(len(silhouettes), np.bool_)
    for number, (before, after) in enumerate(pairwise(silhouettes), 1):
        repeats[number] = cv2.norm(before, after, cv2.NORM_L1) <= _SAME * after.size
    return repeats


def _is_one_stand(fresh: NDArray[np.intp], count: int) -> bool:
    """Whether most repeats come one after the other."""
    gaps = np.diff(np.append(fresh, count)) - 1
    return int(gaps.max()) > int(gaps.sum()) / 2


def _times_too_many(legs: Legs) -> int:
    """How many times as many frames a second there are as a camera takes; 1 unless it is clear."""
    distances = legs.distances
    most = float(distances.max())
    far = int((distances >= _PART_OF_WAY * most).argmax()) + 1
    if far < _MANY_FRAMES or distances[0] > _SLOW_STEP * most:
        return 1
    near = distances[:_LONGEST_STEP]
    if (1 - near / np.maximum(np.maximum.accumulate(near), 1e-6)).max() >= _DIP:
        return 1
    return round(far / _USUAL_FRAMES)


def _walking(legs: Legs, place: Place | None) -> NDArray[np.bool_]:
    """In which frames legs move, or stand for a moment only."""
    count = len(legs.values)
    change = np.zeros(count)
    away = np.zeros(count)
    for lag in range(1, min(_AROUND, count - 1) + 1):
        difference = legs.values[lag:] - legs.values[:-lag]
        _raise(change, lag, np.sqrt(np.einsum("sd,sd->s", difference, difference)) / legs.norm)
        if place:
            heights = np.maximum(place.height[lag:], 1)
            moved = np.abs(place.column[lag:] - place.column[:-lag]) / heights
            grown = np.abs(place.height[lag:] / np.maximum(place.height[:-lag], 1) - 1)
            _raise(away, lag, np.maximum(moved, grown))
    stands = change < _STILL
    if place:
        stands |= (change < _HARDLY) & (away < _IN_PLACE)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], stands, [False]])))
    for start, end in edges.reshape(-1, 2):
        if end - start < _LEAST_STAND:
            stands[start:end] = False
    return ~stands


def _raise(most: NDArray[np.float64], lag: int, apart: NDArray[np.floating]) -> None:
    """The largest so far for both frames that are apart."""
    np.maximum(most[lag:], apart, out=most[lag:])
    np.maximum(most[:-lag], apart, out=most[:-lag])

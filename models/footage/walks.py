"""Tracks cut into walks: the parts in which somebody walks in full view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.footage.background import Background
from models.footage.boxes import SIDE, Box
from models.footage.pictures import thumbnail
from models.footage.tracking import Observation, Track
from models.silhouettes.normalise import normalise
from models.silhouettes.quality import LEAST_FRAMES
from models.silhouettes.types import Frame

LONGEST_S: Final = 8.0
"""A longer walk is several: what is held of it is bounded, and more tells little more."""

_SHORTEST_S: Final = 0.5
_GAP_S: Final = 0.45  # without a usable frame within a walk
_STRIDE_S: Final = 0.5  # in which legs show that they walk
_WALKING: Final = 0.22  # how far they come apart, over their own norm; 0.1 when one stands
_TURN: Final = 0.25  # heights a second, to the other side
_MOST_CORNERS: Final = 32
_PAD: Final = 24  # columns beside a window, so that nobody seems cut by it


class Outcome(NamedTuple):
    """How many frames of people there were, and why some are part of no walk."""

    frames: int = 0
    cut: int = 0
    crowded: int = 0
    standing: int = 0
    short: int = 0

    def __add__(self, other: tuple[int, ...]) -> Outcome:  # type: ignore[override]
        return Outcome(*(mine + its for mine, its in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class Outline:
    """Where a person's mask is in one picture.

    Attributes:
        at_s: when, in seconds of the clip.
        points: column and row of each corner of a polygon, one after the other, in pixels of the
            original; 32 corners at most.
    """

    at_s: float
    points: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FoundWalk:
    """One walk of one person of a clip.

    Attributes:
        track: whose; a person who leaves and comes back is another track.
        from_s, to_s: when it was, in seconds of the clip.
        box: where the person is in its first picture, in pixels of the original.
        frames: silhouettes, uint8 `[160, 208]` each, as `prepare` takes them.
        outlines: the same in the clip, for those who look at it.
        thumbnail: the person, as a JPEG.
    """

    track: int
    from_s: float
    to_s: float
    box: Box
    frames: list[Frame]
    outlines: list[Outline]
    thumbnail: bytes


def cut_walks(
    track: Track, background: Background | None, scale: float
) -> tuple[list[FoundWalk], Outcome]:
    """The walks in a track's observations, and what became of all of them."""
    seen = track.observations
    masks = refine(seen, background)
    walking = _walking(seen, masks)
    usable = [
        index
        for index, one in enumerate(seen)
        if walking[index] and not one.cut and not one.crowded
    ]
    runs = _runs(seen, usable)
    walks = []
    short = 0
    for run in runs:
        lasts = seen[run[-1]].seconds - seen[run[0]].seconds
        if len(run) < LEAST_FRAMES or lasts < _SHORTEST_S:
            short += len(run)
            continue
        first = seen[run[0]]
        binary = [_binary(masks[index]) for index in run]
        walks.append(
            FoundWalk(
                track=track.number,
                from_s=round(first.seconds, 3),
                to_s=round(seen[run[-1]].seconds, 3),
                box=Box(*(round(value * scale, 1) for value in first.box)),
                frames=[np.pad(mask, ((0, 0), (_PAD, _PAD))) for mask in binary],
                outlines=[
                    _outline(mask, seen[index], scale)
                    for mask, index in zip(binary, run, strict=True)
                ],
                thumbnail=thumbnail(first.pixels),
            )
        )
    outcome = Outcome(
        frames=len(seen),
        cut=sum(one.cut for one in seen),
        crowded=sum(one.crowded and not one.cut for one in seen),
        standing=sum(
            not moves and not one.cut and not one.crowded
            for one, moves in zip(seen, walking, strict=True)
        ),
        short=short,
    )
    return walks, outcome


def refine(seen: Sequence[Observation], background: Background | None) -> list[NDArray[np.uint8]]:
    """Masks uint8 `[160, 160]` corrected by the pictures around and by the scene behind.

    What a network misses in one picture it sees in the next: each mask is averaged with those
    before and after, which optical flow brings into its place.
    """
    sure = _agreed(seen)
    if background is not None:
        sure = [
            _weigh(mask, background.difference(one.pixels, one.window))
            for mask, one in zip(sure, seen, strict=True)
        ]
    return [np.asarray(np.rint(mask * 255), np.uint8) for mask in sure]


def _agreed(seen: Sequence[Observation]) -> list[NDArray[np.float32]]:
    """Masks in [0, 1], float32 `[160, 160]`, each with its neighbours' share in it."""
    own = [one.mask.astype(np.float32) / np.float32(255) for one in seen]
    if len(own) < 2:
        return own
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    unknown = np.zeros((*own[0].shape, 2), np.float32)
    greys = [cv2.cvtColor(one.pixels, cv2.COLOR_BGR2GRAY) for one in seen]
    rows, columns = np.mgrid[: own[0].shape[0], : own[0].shape[1]].astype(np.float32)

    def gathered(order: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Each mask with what the ones before it, in an order, add up to."""
        sums = {order[0]: own[order[0]]}
        for before, now in pairwise(order):
            if abs(seen[now].seconds - seen[before].seconds) > _NEIGHBOUR_S:
                sums[now] = own[now]
                continue
            moved = flow.calc(greys[now], greys[before], unknown.copy())
            carried = cv2.remap(
                sums[before], columns + moved[..., 0], rows + moved[..., 1], cv2.INTER_LINEAR
            )
            sums[now] = cv2.addWeighted(own[now], 1 - _MEMORY, carried, _MEMORY, 0).astype(
                np.float32, copy=False
            )
        return sums

    ahead = gathered(range(len(own)))
    behind = gathered(range(len(own) - 1, -1, -1))
    return [np.asarray((ahead[index] + behind[index]) / 2, np.float32) for index in range(len(own))]


def _weigh(mask: NDArray[np.float32], apart: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """A mask less what is as the scene is without anybody.

    Clothes may look as the scene does: only where the person stands out near by does that tell.
    What is unlike the scene adds nothing; it may be a shadow.
    """
    if apart is None:
        return mask
    distance = cv2.blur(np.nan_to_num(apart, nan=_NEUTRAL), _AROUND)
    person = (mask > 0.5).astype(np.float32)
    near = np.maximum(cv2.blur(person, _NEAR), 0.02)
    contrast = cv2.blur(np.minimum(distance, _PLAIN) * person, _NEAR) / near
    tells = np.clip((contrast - _NEUTRAL) / (_PLAIN - _NEUTRAL), 0, 1)
    doubt = tells * np.clip(_WEIGHT * (_NEUTRAL - distance), 0, _MOST)
    clipped = np.clip(mask, 0.004, 0.996)
    odds = np.log(clipped / (1 - clipped)) - doubt
    return np.asarray(1 / (1 + np.exp(-odds)), np.float32)


_NEIGHBOUR_S: Final = 0.15
_MEMORY: Final = 0.5  # share of the mask before in the sum
_WEIGHT: Final = 0.7
_NEUTRAL: Final = 2.5  # times the noise: neither person nor scene
_PLAIN: Final = 8.0  # times the noise: nobody could take it for the scene
_MOST: Final = 1.5
_AROUND: Final = (3, 3)
_NEAR: Final = (25, 25)


def _binary(mask: NDArray[np.uint8]) -> Frame:
    return np.asarray(cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)


def _outline(mask: Frame, seen: Observation, scale: float) -> Outline:
    """The largest piece of a mask as a polygon."""
    pieces, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = max(pieces, key=cv2.contourArea, default=np.zeros((0, 1, 2), np.int32))
    off = 1.0
    while len(corners) > _MOST_CORNERS:
        corners, off = cv2.approxPolyDP(corners, off, closed=True), off * 1.5
    place = (corners[:, 0] + 0.5) * (seen.window.width / SIDE) + seen.window[:2]
    return Outline(
        round(seen.seconds, 3), tuple(np.rint(place * scale).astype(int).ravel().tolist())
    )


def _walking(seen: Sequence[Observation], masks: Sequence[NDArray[np.uint8]]) -> list[bool]:
    """Whether the legs change enough around each observation to be walking."""
    times = np.array([one.seconds for one in seen])
    legs = np.zeros((len(seen), 16 * 32), np.float32)
    for index, mask in enumerate(masks):
        silhouette = normalise(_binary(mask))
        if silhouette is not None:
            small = cv2.resize(silhouette[32:], (32, 16), interpolation=cv2.INTER_AREA)
            legs[index] = small.ravel() / 255
    if len(seen) == 0:
        return []
    norm = max(float(np.sqrt((legs**2).sum(axis=1).mean())), 1e-6)
    change = np.zeros(len(seen))
    for index, when in enumerate(times):
        first, last = np.searchsorted(times, (when - _STRIDE_S, when + _STRIDE_S))
        around = legs[first : last + 1]
        change[index] = np.sqrt(((around - legs[index]) ** 2).sum(axis=1)).max() / norm
    smooth = np.array(
        [
            np.median(change[slice(*np.searchsorted(times, (when - 0.4, when + 0.4)))])
            for when in times
        ]
    )
    return [bool(value > _WALKING) for value in smooth]


def _runs(seen: Sequence[Observation], usable: Sequence[int]) -> list[list[int]]:
    """Usable observations in stretches without long gaps, turns, and no longer than may be."""
    ways = _ways(seen)
    runs: list[list[int]] = []
    way = 0
    for index in usable:
        now = seen[index].seconds
        if (
            not runs
            or now - seen[runs[-1][-1]].seconds > _GAP_S
            or now - seen[runs[-1][0]].seconds > LONGEST_S
            or ways[index] * way < 0
        ):
            runs.append([])
            way = 0
        runs[-1].append(index)
        way = ways[index] or way
    return runs


def _ways(seen: Sequence[Observation]) -> list[int]:
    """1 to the right, -1 to the left, 0 neither, by what a second around shows."""
    times = np.array([one.seconds for one in seen])
    columns = np.array([one.box.centre[0] for one in seen])
    ways = []
    for index, when in enumerate(times):
        first, last = np.searchsorted(times, (when - 0.5, when + 0.5))
        last = min(last, len(times) - 1)
        passed = times[last] - times[first]
        heights = (columns[last] - columns[first]) / max(seen[index].box.height, 1.0)
        speed = heights / passed if passed > 0.2 else 0.0
        ways.append(int(np.sign(speed)) if abs(speed) > _TURN else 0)
    return ways

"""Who is meant, where there is more than one person or more than one walk.

People are followed from frame to frame by where they are and how tall. One person is answered for:
the only one who walks, if anybody else is there at the same time. Two who walk are refused, because
nobody can know who is meant. A person who is suddenly elsewhere, or in an image of another size, is
another walk; the longest counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from models.silhouettes.cleaning import Size
from models.silhouettes.pieces import Box
from models.silhouettes.quality import LEAST_FRAMES, is_walker
from models.silhouettes.types import Frame

_LOST: Final = 5  # frames in which somebody may be out of sight
_FURTHEST: Final = 0.5  # heights from one frame to the next, and for each that is missing
_TALLER: Final = 2.0  # heights that a doubling of the size counts for
_WAY: Final = 0.3  # heights to either side, that who walks gets on
_GROWTH: Final = 1.15  # or so much taller
_RIVAL: Final = 0.25  # of the frames of who is followed
_LEAP: Final = 1.0  # heights from one frame to the next
_ABSENT: Final = 20  # frames
_MOST_CAMERAS: Final = 3  # changes of the image's size; more, and people were cut out
_SOME: Final = 0.25  # of the frames
_HEADLESS: Final = 0.7  # of the trunk's width, at the top; heads have 0.15 to 0.5
_FOREGROUND: Final = 127


class Sighting(NamedTuple):
    """One person in one frame.

    Attributes:
        number: of the frame.
        silhouette: normalised, uint8 `[64, 64]`, or the reason why it can't be.
        size: in the frame.
        place: in the frame.
        image: rows and columns of the frame.
        lying: the same after a quarter turn, of who is wider than tall; else None.
        bare: the same without what is held over the head; None if nothing is.
    """

    number: int
    silhouette: Frame | str
    size: Size
    place: Box
    image: tuple[int, int]
    lying: Sighting | None = None
    bare: Sighting | None = None

    @property
    def column(self) -> float:
        """Of the middle."""
        return (self.place.left + self.place.right) / 2


class Followed(NamedTuple):
    """The sightings of who is meant, in order, and issues with that; None where nobody is seen."""

    sightings: list[Sighting | None]
    issues: list[str]
    several_walk: bool


_Track = dict[int, Sighting]


def follow(frames: Sequence[Sequence[Sighting]]) -> Followed:
    """Follow who is meant through frames in each of which the largest person comes first."""
    largest = [people[0] if people else None for people in frames]
    if sum(len(people) > 1 for people in frames) < LEAST_FRAMES:
        return Followed(largest, [], several_walk=False)
    tracks = sorted(_tracks(frames), key=len, reverse=True)
    tracks = [track for track in tracks if len(track) >= LEAST_FRAMES]
    walkers = [track for track in tracks if _walks(track)]
    if not walkers:
        return Followed(largest, [], several_walk=False)
    meant = max(walkers, key=lambda track: sum(one.size.height for one in track.values()))
    others = [
        track
        for track in tracks
        if track is not meant and len(track.keys() & meant.keys()) >= LEAST_FRAMES
    ]
    if not others:
        return Followed(largest, [], several_walk=False)
    walk_too = any(
        _walks(track) and len(track.keys() & meant.keys()) >= _RIVAL * len(meant)
        for track in others
    )
    followed = [meant.get(number) for number in range(len(frames))]
    return Followed(followed, ["several_people"], several_walk=walk_too)


def longest_walk(sightings: Sequence[Sighting]) -> slice:
    """Which of somebody's sightings are one walk: the most without a leap or a long absence."""
    images = [one.image for one in sightings]
    changes = [at for at in range(1, len(images)) if images[at] != images[at - 1]]
    if len(changes) > _MOST_CAMERAS:
        return slice(0, len(sightings))
    breaks = [
        at
        for at, (before, after) in enumerate(pairwise(sightings), 1)
        if at in changes or _is_break(before, after)
    ]
    ends = [0, *breaks, len(sightings)]
    walks = [slice(start, end) for start, end in pairwise(ends)]
    long = [walk for walk in walks if walk.stop - walk.start >= LEAST_FRAMES]
    if len(long) < 2:
        return slice(0, len(sightings))
    return max(long, key=lambda walk: walk.stop - walk.start)


def _is_break(before: Sighting, after: Sighting) -> bool:
    absent = after.number - before.number - 1
    way = abs(after.column - before.column) / max(before.size.height, after.size.height)
    return absent > _ABSENT or way > _LEAP + min(_LEAP, absent * _FURTHEST)


def find_uncut(sightings: list[Sighting], noticed: list[str]) -> list[Sighting]:
    """The sightings in which no border cuts the person above or below; all if that is few.

    Who reaches both was cut out closely, unless there is no head.
    """
    cut = [(one.place.top <= 0) != (one.place.bottom >= one.image[0]) for one in sightings]
    count = sum(cut)
    if count > _SOME * len(cut) or _is_headless(sightings):
        noticed.append("cut_off")
    if count > len(cut) / 2:
        return sightings
    return [one for one, is_cut in zip(sightings, cut, strict=True) if not is_cut]


def _is_headless(sightings: Sequence[Sighting]) -> bool:
    """Whether people who reach the upper border are as wide there as their trunks."""
    shown = [
        one.silhouette
        for one in sightings
        if one.place.top <= 0 and not isinstance(one.silhouette, str)
    ]
    if len(shown) <= len(sightings) / 2:
        return False
    widths = (np.stack(shown) > _FOREGROUND).mean(axis=0).sum(axis=1)
    return bool(widths[:2].mean() > _HEADLESS * widths[16:32].mean())


def _tracks(frames: Sequence[Sequence[Sighting]]) -> list[_Track]:
    tracks: list[_Track] = []
    for number, people in enumerate(frames):
        open_ = [track for track in tracks if number - max(track) <= _LOST]
        pairs = sorted(
            (apart / (number - max(track)), place, at)
            for place, track in enumerate(open_)
            for at, person in enumerate(people)
            if (apart := _apart(track[max(track)], person)) < _FURTHEST * (number - max(track))
        )
        taken: set[int] = set()
        for _, place, at in pairs:
            if number not in open_[place] and at not in taken:
                open_[place][number] = people[at]
                taken.add(at)
        tracks += [{number: person} for at, person in enumerate(people) if at not in taken]
    return tracks


def _apart(one: Sighting, other: Sighting) -> float:
    """How far two sightings are apart, in heights."""
    taller = max(one.size.height, other.size.height)
    down = abs(one.place.bottom - other.place.bottom)
    growth = abs(float(np.log2(one.size.height / other.size.height)))
    return float(np.hypot(one.column - other.column, down)) / taller + _TALLER * growth


def _walks(track: _Track) -> bool:
    """Whether somebody gets on in the image, and walks."""
    sightings = list(track.values())
    columns = [one.column for one in sightings]
    heights = [one.size.height for one in sightings]
    way = max(columns) - min(columns)
    if way < _WAY * max(heights) and max(heights) < _GROWTH * min(heights):
        return False
    silhouettes = [one.silhouette for one in sightings]
    shown = [one for one in silhouettes if not isinstance(one, str)]
    return len(shown) >= LEAST_FRAMES and is_walker(np.stack(shown))

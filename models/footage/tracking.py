"""Who is who from picture to picture, through occlusion and crossing.

Boxes of people are matched with where tracks should be by now and with what they wear. Between two
looks for people, and where the detector misses somebody, a box follows the mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.footage.background import EmptyScene
from models.footage.boxes import Box, cut_out, in_window, out_of_window
from models.footage.pictures import Image, Picture
from models.footage.segmentation import MARGIN, Found, Mask, Segmenter

MOST_TRACKS: Final = 12  # at once, the largest people first; it bounds memory and time

_NEW_SCORE: Final = 0.4  # of a box that begins a track; those that go on may have less
_LEAST_OVERLAP: Final = 0.15
_WITHIN: Final = 0.6  # of the smaller of two boxes is in the other: no new person
_CROWDED: Final = 0.1  # the same, when two tracks' masks may mix
_WAIT_S: Final = 1.2  # without any sign, behind something or somebody
_UNCONFIRMED_S: Final = 0.5
_UNDETECTED_S: Final = 3.0  # that a mask alone may carry a track
_BRIGHT: Final = 127
_LEAST_FILL: Final = 0.12  # of the box is the person's
_FITS: Final = 0.35  # overlap of the mask's box with where it should be
_HEIGHTS: Final = (0.75, 1.33)  # of the mask's box, over that of where it should be
_SIZES: Final = (0.6, 1.7)  # of the person's usual pixels; beyond, the mask is of something else
_SIZE_SHARE: Final = 0.2
_MOST_ODD: Final = 5  # masks in a row; then it was the usual one that was wrong
_PIECE: Final = 0.02  # of the body's pixels; smaller pieces are specks
_TRUSTED: Final = 0.2  # share of where somebody should be in where they are found
_SMOOTHING: Final = 0.4
_BORDER: Final = 0.008  # of the picture's side


@dataclass(slots=True)
class Observation:
    """One person in one picture.

    Attributes:
        seconds: when.
        window: the square that pixels and mask show.
        pixels: uint8 `[160, 160, 3]`.
        mask: uint8 `[160, 160]`, nothing but this person.
        box: around the mask, in the picture.
        cut: whether the picture's border cuts the person.
        crowded: whether somebody else is so near that masks mix.
    """

    seconds: float
    window: Box
    pixels: Image
    mask: Mask
    box: Box
    cut: bool
    crowded: bool


@dataclass(slots=True, eq=False)
class Track:
    """One person as far as followed.

    Attributes:
        number: from 1, in the order of appearance.
        observations: those that are not yet part of a walk.
        thumbnail: a picture of the person, for those who choose among tracks.
    """

    number: int
    box: Box
    seconds: float
    observations: list[Observation] = field(default_factory=list)
    velocity: tuple[float, float] = (0.0, 0.0)  # pixels a second
    detected_s: float = 0.0
    seen_s: float = 0.0
    hits: int = 1
    clothes: NDArray[np.float32] | None = None
    whole: bool = False  # whether the picture ever held all of the person
    usual: float = 0.0  # pixels of the person, over the square of the box's longer side
    odd: int = 0

    def is_usual(self, size: float) -> bool:
        """Whether a mask has about as many pixels as those before; learns from it if so."""
        ratio = size / self.usual if self.usual else 1.0
        self.odd = 0 if _SIZES[0] < ratio < _SIZES[1] else self.odd + 1
        if 0 < self.odd < _MOST_ODD:
            return False
        share = _SIZE_SHARE if self.usual and self.odd == 0 else 1.0
        self.odd = 0
        self.usual += share * (size - self.usual)
        return True

    def expected(self, seconds: float) -> Box:
        """Where the person should be at a time."""
        passed = min(seconds - self.seconds, _WAIT_S)
        return self.box.moved(self.velocity[0] * passed, self.velocity[1] * passed)

    def move(self, box: Box, seconds: float) -> None:
        """Take a new place at a time."""
        passed = seconds - self.seconds
        if passed > 0:
            old, new = self.box.centre, box.centre
            share = min(1.0, _SMOOTHING * passed / 0.1)
            self.velocity = (
                self.velocity[0] + share * ((new[0] - old[0]) / passed - self.velocity[0]),
                self.velocity[1] + share * ((new[1] - old[1]) / passed - self.velocity[1]),
            )
        self.box, self.seconds = box, seconds


class Tracker:
    """Follows everybody in one clip; tracks that ended are handed out once."""

    def __init__(self, segmenter: Segmenter, numbers: int = 0) -> None:
        """The first track's number is the one after `numbers`."""
        self.tracks: list[Track] = []
        self.numbers = numbers
        self._segmenter = segmenter
        self._looked_s = -math.inf
        self._empty = EmptyScene()

    def see(self, picture: Picture) -> list[Track]:
        """Follow everybody into the next picture; returns the tracks that end before it."""
        image, now = picture.image, picture.seconds
        expected = {track.number: track.expected(now) for track in self.tracks}
        matched: dict[int, Found] = {}
        if now - self._looked_s >= self._segmenter.every_s:
            self._looked_s = now
            matched = self._match(image, self._find(image), expected, now)
        places = {}
        for track in self.tracks:
            place = expected.get(track.number, track.box)
            person = matched.get(track.number)
            places[track.number] = person.box.towards(place, _TRUSTED) if person else place
        crowded = _crowded(places)
        windows = [places[track.number].window(MARGIN) for track in self.tracks]
        masks = self._segmenter.segment(image, windows)
        for track, window, mask in zip(self.tracks, windows, masks, strict=True):
            number = track.number
            signs = {"detected": number in matched, "crowded": number in crowded}
            self._follow(track, picture, places[number], window, mask, **signs)
        ended = [track for track in self.tracks if _is_over(track, image, now)]
        self.tracks = [track for track in self.tracks if track not in ended]
        return [track for track in ended if track.hits > 1]

    def finish(self) -> list[Track]:
        """The tracks that are under way end; whoever is seen from now on begins another one."""
        ended, self.tracks = self.tracks, []
        self._looked_s = -math.inf
        self._empty = EmptyScene()
        return [track for track in ended if track.hits > 1]

    def _find(self, image: Image) -> list[Found]:
        """Everybody in a picture; one that looks like an empty one before it is not looked at."""
        if self._segmenter.every_s == 0:  # it learns from every picture
            return self._segmenter.find(image)
        if self._empty.holds(image):
            return []
        found = self._segmenter.find(image)
        self._empty.learn(image, empty=not found)
        return found

    def _match(
        self, image: Image, found: Sequence[Found], expected: dict[int, Box], now: float
    ) -> dict[int, Found]:
        """Which box is whose; boxes of nobody known begin tracks."""
        clothes = [_clothes(image, person.box) for person in found]
        pairs = []
        for track in self.tracks:
            place = expected[track.number]
            waited = now - track.seen_s
            for index, person in enumerate(found):
                overlap = place.overlap(person.box)
                near = _nearness(place, person.box) if waited > 0.3 else 0.0
                alike = _likeness(track.clothes, clothes[index])
                if max(overlap, near / 2) >= _LEAST_OVERLAP:
                    score = overlap + near / 2 + 0.5 * alike + 0.2 * person.score
                    pairs.append((score, track.number, index))
        matched: dict[int, Found] = {}
        taken: set[int] = set()
        for _, number, index in sorted(pairs, reverse=True):
            if number not in matched and index not in taken:
                matched[number] = found[index]
                taken.add(index)
        for track in self.tracks:
            if track.number in matched:
                index = found.index(matched[track.number])
                track.hits += 1
                track.detected_s = track.seen_s = now
                others = [box for number, box in expected.items() if number != track.number]
                if all(_within(track.box, box) < _CROWDED for box in others):
                    track.clothes = _blend(track.clothes, clothes[index])
        for index, person in enumerate(found):
            if index in taken or person.score < _NEW_SCORE or len(self.tracks) >= MOST_TRACKS:
                continue
            if any(_within(person.box, track.box) > _WITHIN for track in self.tracks) or any(
                _within(person.box, other.box) > _WITHIN for other in matched.values()
            ):
                continue
            self.numbers += 1
            track = Track(self.numbers, person.box, now, clothes=clothes[index])
            track.detected_s = track.seen_s = now
            self.tracks.append(track)
            matched[track.number] = person
        return matched

    def _follow(
        self,
        track: Track,
        picture: Picture,
        place: Box,
        window: Box,
        mask: Mask,
        *,
        detected: bool,
        crowded: bool,
    ) -> None:
        now = picture.seconds
        inside = in_window(place, window)
        person, body = _own(mask, inside)
        area = np.count_nonzero(person > _BRIGHT)
        box = out_of_window(body, window) if body is not None else place
        if (
            body is None
            or area < _LEAST_FILL * inside.area
            or box.overlap(place) < _FITS
            or not _HEIGHTS[0] < box.height / place.height < _HEIGHTS[1]
            or not (crowded or track.is_usual(area / max(inside.width, inside.height) ** 2))
        ):
            track.move(place, now)
            return
        if crowded:
            track.move(place, now)
        else:
            track.move(place.towards(box, 0.5 if detected else 0.8), now)
            track.seen_s = now
        cut = _is_cut(box, picture.image)
        track.whole |= not cut
        track.observations.append(
            Observation(
                seconds=now,
                window=window,
                pixels=cut_out(picture.image, window),
                mask=person,
                box=box,
                cut=cut,
                crowded=crowded,
            )
        )


def _own(mask: Mask, inside: Box) -> tuple[Mask, Box | None]:
    """A window's mask without what is somebody else's, and the box of what remains."""
    bright = np.asarray(cv2.threshold(mask, _BRIGHT, 255, cv2.THRESH_BINARY)[1], np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    if count < 2:
        return np.zeros_like(mask), None
    left, top = max(0, round(inside.left)), max(0, round(inside.top))
    right, bottom = round(inside.right), round(inside.bottom)
    within = np.bincount(labels[top:bottom, left:right].ravel(), minlength=count)
    within[0] = 0
    largest = int(within.argmax())
    if within[largest] == 0:
        return np.zeros_like(mask), None
    kept = [
        label
        for label in range(1, count)
        if within[label] > stats[label, cv2.CC_STAT_AREA] / 2
        and within[label] >= _PIECE * within[largest]
    ]
    kept = sorted({*kept, largest})
    chosen = np.isin(labels, kept).astype(np.uint8)
    if count > 2:  # a soft edge stays, a soft neighbour goes
        chosen = np.asarray(cv2.dilate(chosen, np.ones((5, 5), np.uint8)), np.uint8)
        others = (labels > 0) & ~np.isin(labels, kept)
        person = np.where((chosen > 0) & ~others, mask, np.uint8(0))
    else:
        person = mask
    x, y, wide, high = cv2.boundingRect(np.isin(labels, kept).astype(np.uint8))
    return person, Box(float(x), float(y), float(wide), float(high))


def _is_cut(box: Box, image: Image) -> bool:
    rows, columns = image.shape[:2]
    edge = max(1.0, _BORDER * max(rows, columns))
    return bool(
        box.left < edge or box.top < edge or box.right > columns - edge or box.bottom > rows - edge
    )


def _is_over(track: Track, image: Image, now: float) -> bool:
    rows, columns = image.shape[:2]
    column, row = track.box.centre
    outside = not (0 <= column < columns and 0 <= row < rows)
    unconfirmed = track.hits < 2 and now - track.detected_s > _UNCONFIRMED_S
    return (
        outside
        or unconfirmed
        or now - track.seen_s > _WAIT_S
        or now - track.detected_s > _UNDETECTED_S
    )


def _crowded(places: dict[int, Box]) -> set[int]:
    """Those whose boxes somebody else's reaches into."""
    return {
        number
        for number, box in places.items()
        if any(_within(box, other) > _CROWDED for name, other in places.items() if name != number)
    }


def _within(one: Box, other: Box) -> float:
    return one.shared(other) / max(min(one.area, other.area), 1e-9)


def _nearness(place: Box, box: Box) -> float:
    """1 where two boxes are the same, 0 from a height's distance or half the size on."""
    apart = np.hypot(*np.subtract(place.centre, box.centre)) / max(place.height, 1.0)
    size = abs(np.log(max(box.height, 1.0) / max(place.height, 1.0))) / np.log(2)
    return max(0.0, 1.0 - float(apart)) * max(0.0, 1.0 - float(size))


def _clothes(image: Image, box: Box) -> NDArray[np.float32]:
    """Colours of the middle of a box, upper and lower half, float32 `[2 * 64]`, of norm 1 each."""
    column, _ = box.centre
    halves = []
    for top, bottom in ((0.15, 0.5), (0.5, 0.9)):
        rows = slice(
            max(0, round(box.top + top * box.height)), max(0, round(box.top + bottom * box.height))
        )
        columns = slice(
            max(0, round(column - 0.2 * box.width)), max(0, round(column + 0.2 * box.width) + 1)
        )
        part = np.ascontiguousarray(image[rows, columns])
        counts = np.zeros(64, np.float32)
        if part.size:
            found = cv2.calcHist([part], [0, 1, 2], None, [4, 4, 4], [0, 256] * 3)
            counts = np.sqrt(np.asarray(found, np.float32).ravel() / (part.size / 3))
        halves.append(counts)
    return np.concatenate(halves)


def _likeness(one: NDArray[np.float32] | None, other: NDArray[np.float32]) -> float:
    return 0.0 if one is None else float(one @ other) / 2


def _blend(one: NDArray[np.float32] | None, other: NDArray[np.float32]) -> NDArray[np.float32]:
    return other if one is None else np.float32(0.8) * one + np.float32(0.2) * other

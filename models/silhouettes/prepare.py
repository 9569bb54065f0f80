"""Frames as they were sent to silhouettes a network takes: clean, normalise, judge."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from models.silhouettes.budget import Budget, DecodeLimits
from models.silhouettes.cleaning import EMPTY, FRAGMENT, Person, Size, find_people, find_unsteady
from models.silhouettes.decode import decode_each, is_bright, put_white_on_black, whiten
from models.silhouettes.errors import SequenceTooLarge
from models.silhouettes.labels import list_labels, part_people
from models.silhouettes.members import NO_MEMORY
from models.silhouettes.normalise import CUT_WIDTH, HEIGHT, WIDTH, normalise, pad
from models.silhouettes.overhead import rows_overhead
from models.silhouettes.people import Sighting, find_uncut, follow, longest_walk
from models.silhouettes.quality import LEAST_FRAMES, judge, refused
from models.silhouettes.rhythm import Place, find_even
from models.silhouettes.types import Frame, Quality, Silhouettes
from models.silhouettes.upright import turn_upright

ELSEWHERE, OTHER_WALK, CUT = "elsewhere", "other_walk", "cut"

_PREPARED_SHAPES = {(HEIGHT, WIDTH), (HEIGHT, CUT_WIDTH)}
_OFF_CENTRE = 4  # columns
_MARGIN = 4  # rows
_MOST = 0.8  # of the frames; the others may hold a slip of whoever prepared them
_FLATTEST = 64  # columns of the frame for each row of the person
_LYING = 1.2  # columns for each row
_SOME = 0.25  # of the frames
_FEW_ROWS = 40  # of a person: with hard outlines of 36, similarities are 0.05 lower, of 24 0.14
_TOGETHER = 2**20  # bytes of frames that go through a stage one after the other
_PART_TOGETHER = 64  # of the bytes that may be held
_MOST_TOGETHER = 32  # frames
_UNBOUNDED = DecodeLimits(max_seconds=math.inf)


class Prepared(NamedTuple):
    """A sequence that may be embedded.

    Attributes:
        silhouettes: uint8 `[s, 64, 64]`.
        quality: the judgement on it; its issues are warnings.
    """

    silhouettes: Silhouettes
    quality: Quality


def prepare_upload(data: bytes, limits: DecodeLimits, *, clean: bool = True) -> Prepared:
    """Decode and prepare one walk within one budget: its limits span everything that is done.

    Args:
        data: the file's bytes; hostile ones are expected. `decode` says what is accepted.
        limits: what it may cost.
        clean: as for `prepare`.

    Raises:
        SequenceError: any of its kinds, and no other error.
    """
    budget = Budget(limits)
    try:
        return _prepare_each(decode_each(data, budget), clean, budget)
    except MemoryError as error:
        raise SequenceTooLarge(NO_MEMORY) from error
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        raise SequenceTooLarge(NO_MEMORY) from error


def prepare(
    frames: Sequence[Frame], *, clean: bool = True, budget: Budget | None = None
) -> Prepared:
    """Clean, normalise and judge one walk.

    Frames that are normalised already pass untouched (64 x 44 ones get their margins back), except
    that empty ones are dropped.

    Args:
        frames: uint8 `[h, w]` each, of any sizes.
        clean: whether to look for the person in each frame; without, whole frames are normalised
            as the field does, noise and all.
        budget: whose time preparing must keep to; unbounded when None.

    Raises:
        PoorSequence: no gait can be recognised in it.
        SequenceTooLarge: the budget's time is spent.
    """
    return _prepare(frames, clean, budget or Budget(_UNBOUNDED), inverted=0)


def _prepare(frames: Sequence[Frame], clean: bool, budget: Budget, inverted: int) -> Prepared:
    """`prepare` frames of which so many were black on white."""
    if not is_prepared(frames):
        walk = _Walk(clean, budget)
        for group in _grouped(frames, budget):
            walk.add([_Marked(frame) for frame in group])
        walk.inverted = inverted
        return walk.finish()
    silhouettes, dropped = _take_prepared(frames)
    noticed = _inversions(inverted, len(frames))
    if len(silhouettes) >= LEAST_FRAMES:
        silhouettes = turn_upright(silhouettes, noticed)
    quality = judge(silhouettes, frames_in=len(frames), dropped=dropped, noticed=noticed)
    return Prepared(silhouettes, quality)


def is_prepared(frames: Sequence[Frame]) -> bool:
    """Whether frames are normalised already.

    They are when all are 64 x 64 or all are 64 x 44, and in nearly all that hold anything the
    person reaches from the top rows to the bottom ones and is centred.
    """
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1 or not shapes <= _PREPARED_SHAPES:
        return False
    stack = np.stack(frames)
    stack = stack[stack.any(axis=(1, 2))]
    if len(stack) == 0:
        return False
    mass = stack.sum(axis=1, dtype=np.int64).cumsum(axis=1)
    middle = (mass > mass[:, -1:] / 2).argmax(axis=1)
    centred = np.abs(middle - stack.shape[2] // 2) <= _OFF_CENTRE
    tall = stack[:, :_MARGIN].any(axis=(1, 2)) & stack[:, -_MARGIN:].any(axis=(1, 2))
    return bool((centred & tall).mean() >= _MOST)


def _take_prepared(frames: Sequence[Frame]) -> tuple[Silhouettes, dict[str, int]]:
    stack = np.stack(frames)
    kept = stack.any(axis=(1, 2))
    empty = int(len(stack) - kept.sum())
    silhouettes = stack[kept] if empty else stack
    if silhouettes.shape[2] == CUT_WIDTH:
        silhouettes = pad(silhouettes)
    return silhouettes, {EMPTY: empty} if empty else {}


def _prepare_each(frames: Iterator[Frame], clean: bool, budget: Budget) -> Prepared:
    """`prepare` frames that are just being decoded: of each only the silhouette is kept.

    A few are held at once.

    Frames that may be normalised already are kept until one is not; they are small.
    """
    held: list[Frame] = []
    for frame in frames:
        held.append(frame)
        if frame.shape not in _PREPARED_SHAPES or frame.shape != held[0].shape:
            break
    else:
        put_right = put_white_on_black if any(map(is_bright, held)) else whiten
        inverted = sum([put_right(frame) for frame in held])
        return _prepare(held, clean, budget, inverted)

    del frame
    as_sent = _Walk(clean, budget)
    as_labels: _Walk | None = _Walk(clean, budget)
    for group in _grouped(itertools.chain(_emptying(held), frames), budget):
        if as_labels and any(map(is_bright, group)):
            as_labels = None
        if as_labels:
            as_labels.add_labels([frame.copy() for frame in group])
        as_sent.add_sent(group)
        budget.give_back(sum(frame.size for frame in group))
        del group  # before more is decoded
    return (as_labels or as_sent).finish()


def _grouped(frames: Iterable[Frame], budget: Budget) -> Iterator[list[Frame]]:
    """A few frames at a time: one stage after the other for all of them is faster than for each."""
    enough = min(_TOGETHER, budget.limits.max_decoded_bytes // _PART_TOGETHER)
    group: list[Frame] = []
    size = 0
    for frame in frames:
        group.append(frame)
        size += frame.size
        del frame  # who is done with a group shall have let go of all of it
        if size >= enough or len(group) == _MOST_TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group


def _emptying(held: list[Frame]) -> Iterator[Frame]:
    while held:
        yield held.pop(0)


class _Marked(NamedTuple):
    """A frame, white on black, and the same with people or parts numbered, if it has labels."""

    frame: Frame
    numbered: Frame | None = None
    labels: Sequence[int] = ()


class _Walk:
    """The silhouettes of one walk, each normalised as soon as its frame is there.

    Neither frames nor strips of them are kept.
    """

    def __init__(self, clean: bool, budget: Budget) -> None:
        self._clean = clean
        self._budget = budget
        self._count = 0
        self.inverted = 0
        self._dropped: Counter[str] = Counter()
        self._uncleaned: list[Frame] = []
        self._frames: list[list[Sighting]] = []

    def add_labels(self, frames: Sequence[Frame]) -> None:
        """Take the next frames, which hold labels; they become white on black."""
        self.add([self._whitened(frame) for frame in frames])

    def add_sent(self, frames: Sequence[Frame]) -> None:
        """Take the next frames, each of which may be black on white, or hold bright labels."""
        self.add([self._put_right(frame) for frame in frames])

    def _whitened(self, frame: Frame) -> _Marked:
        numbered = frame.copy() if self._clean and (labels := list_labels(frame)) else None
        self.inverted += whiten(frame)
        if numbered is None:
            return _Marked(frame)
        numbered[frame == 0] = 0
        return _Marked(frame, numbered, labels)

    def _put_right(self, frame: Frame) -> _Marked:
        if list_labels(frame):
            return self._whitened(frame)
        self.inverted += put_white_on_black(frame)
        return _Marked(frame)

    def add(self, frames: Sequence[_Marked]) -> None:
        """Take the next frames, white on black."""
        if self._clean:
            found = [self._find(one) for one in frames]
            for one, people in zip(frames, found, strict=True):
                self._add_people(people, one.frame)
            return
        for frame, _, _ in frames:
            self._budget.check_time()
            self._count += 1
            silhouette = _normalise_one(frame, cv2.boundingRect(frame)[3])
            if isinstance(silhouette, str):
                self._dropped[silhouette] += 1
            else:
                self._uncleaned.append(silhouette)

    def _find(self, marked: _Marked) -> list[Person | str]:
        self._budget.check_time()
        people = find_people(marked.frame, self._budget)
        if marked.numbered is not None:
            people = part_people(people, marked.numbered, list(marked.labels), self._budget)
        return people

    def _add_people(self, people: Sequence[Person | str], frame: Frame) -> None:
        self._count += 1
        if isinstance(people[0], str):
            self._dropped[people[0]] += 1
        rows, columns = frame.shape
        self._frames.append(
            [
                _sighted(self._count, one, (rows, columns))
                for one in people
                if isinstance(one, Person)
            ]
        )

    def finish(self) -> Prepared:
        """What remains of the walk, and the judgement on it.

        Raises:
            PoorSequence: no gait can be recognised in it.
        """
        noticed = _inversions(self.inverted, self._count)
        sightings = self._meant(noticed) if self._clean else []
        shown = [one.silhouette for one in sightings] if self._clean else self._uncleaned
        silhouettes = np.stack(shown) if shown else np.zeros((0, HEIGHT, WIDTH), np.uint8)
        legs = None
        if self._clean and len(silhouettes) >= LEAST_FRAMES:
            rhythm = find_even(silhouettes, _places(sightings))
            self._dropped.update(rhythm.dropped)
            noticed += rhythm.issues
            silhouettes, legs = silhouettes[rhythm.kept], rhythm.legs
            turned = turn_upright(silhouettes, noticed)
            silhouettes, legs = turned, legs if turned is silhouettes else None
        quality = judge(
            silhouettes,
            frames_in=self._count,
            dropped=self._dropped,
            noticed=noticed,
            legs=legs,
        )
        return Prepared(silhouettes, quality)

    def _meant(self, noticed: list[str]) -> list[Sighting]:
        """Where the person who is meant is seen whole, each with a silhouette; notices what is."""
        followed = follow(self._frames)
        if followed.several_walk:
            raise refused(followed.issues, frames_in=self._count, dropped=self._dropped)
        noticed += followed.issues
        seen = [one for one in followed.sightings if one]
        self._drop(ELSEWHERE, sum(map(bool, self._frames)) - len(seen))
        for others, code in (
            ([one.lying for one in seen if one.lying], "upside_down"),
            ([one.bare for one in seen if one.bare], "not_a_person_shape"),
        ):
            if len(others) > len(seen) / 2:
                noticed.append(code)
                seen = others
        reasons = find_unsteady([one.size for one in seen])
        self._dropped.update(reason for reason in reasons if reason)
        steady = [one for one, reason in zip(seen, reasons, strict=True) if not reason]
        walk = longest_walk(steady)
        if self._drop(OTHER_WALK, len(steady) - len(steady[walk])):
            noticed.append("several_walks")
        steady = steady[walk]
        kept = find_uncut(steady, noticed)
        self._drop(CUT, len(steady) - len(kept))
        if kept and float(np.median([one.size.height for one in kept])) < _FEW_ROWS:
            noticed.append("low_resolution")
        self._dropped.update(one.silhouette for one in kept if isinstance(one.silhouette, str))
        return [one for one in kept if not isinstance(one.silhouette, str)]

    def _drop(self, reason: str, count: int) -> int:
        if count:
            self._dropped[reason] += count
        return count


def _sighted(number: int, person: Person, image: tuple[int, int]) -> Sighting:
    strip, size, place = person
    sighting = Sighting(number, _normalise_one(strip, len(strip)), size, place, image)
    if place.width > _LYING * place.height:
        turned = np.ascontiguousarray(np.rot90(strip))
        lying = sighting._replace(
            silhouette=_normalise_one(turned, place.width), size=Size(place.width, size.area)
        )
        sighting = sighting._replace(lying=lying)
    if held := rows_overhead(strip):
        bare = sighting._replace(
            silhouette=_normalise_one(strip[held:], len(strip) - held),
            size=Size(size.height * (len(strip) - held) // len(strip), size.area),
        )
        sighting = sighting._replace(bare=bare)
    return sighting


def _inversions(inverted: int, count: int) -> list[str]:
    return ["inverted"] if inverted > _SOME * count else []


def _places(sightings: Sequence[Sighting]) -> Place | None:
    """Where somebody is, if all images are of one size: else people were cut out."""
    if len({one.image for one in sightings}) != 1:
        return None
    return Place(
        np.array([one.column for one in sightings]),
        np.array([one.size.height for one in sightings], np.float64),
    )


def _normalise_one(frame: Frame, height: int) -> Frame | str:
    """A frame with something in so many rows normalised, or the reason why it can't be."""
    if 0 < height * _FLATTEST < frame.shape[1]:
        return FRAGMENT  # a speck in a wide frame would be blown up to an image of many megabytes
    silhouette = normalise(frame)
    return EMPTY if silhouette is None else silhouette

"""Frames as they were sent to silhouettes a network takes: clean, normalise, judge."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from models.silhouettes.budget import Budget, DecodeLimits
from models.silhouettes.cleaning import EMPTY, FRAGMENT, Size, find_person, find_unsteady
from models.silhouettes.decode import decode_each, is_bright, whiten
from models.silhouettes.errors import SequenceTooLarge
from models.silhouettes.members import NO_MEMORY
from models.silhouettes.normalise import CUT_WIDTH, HEIGHT, WIDTH, normalise, pad
from models.silhouettes.quality import judge
from models.silhouettes.types import Frame, Quality, Silhouettes

_PREPARED_SHAPES = {(HEIGHT, WIDTH), (HEIGHT, CUT_WIDTH)}
_OFF_CENTRE = 4  # columns
_MARGIN = 4  # rows
_MOST = 0.8  # of the frames; the others may hold a slip of whoever prepared them
_FLATTEST = 64  # columns of the frame for each row of the person
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
    if is_prepared(frames):
        silhouettes, dropped = _take_prepared(frames)
    else:
        silhouettes, dropped = _normalise_all(frames, clean, budget or Budget(_UNBOUNDED))
    quality = judge(silhouettes, frames_in=len(frames), dropped=dropped)
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

    Frames that may be normalised already are kept until one is not; they are small.
    """
    held: list[Frame] = []
    for frame in frames:
        held.append(frame)
        if frame.shape not in _PREPARED_SHAPES or frame.shape != held[0].shape:
            break
    else:
        if not any(map(is_bright, held)):
            for frame in held:
                whiten(frame)
        return prepare(held, clean=clean, budget=budget)

    count = 0
    as_sent = _Walk(clean, budget)
    as_labels: _Walk | None = _Walk(clean, budget)
    for frame in itertools.chain(_emptying(held), frames):
        count += 1
        as_sent.add(frame)
        if as_labels and is_bright(frame):
            as_labels = None
        if as_labels:
            whiten(frame)
            as_labels.add(frame)
        budget.give_back(frame.size)
    silhouettes, dropped = (as_labels or as_sent).finish()
    return Prepared(silhouettes, judge(silhouettes, frames_in=count, dropped=dropped))


def _emptying(held: list[Frame]) -> Iterator[Frame]:
    while held:
        yield held.pop(0)


def _normalise_all(
    frames: Sequence[Frame], clean: bool, budget: Budget
) -> tuple[Silhouettes, dict[str, int]]:
    walk = _Walk(clean, budget)
    for frame in frames:
        walk.add(frame)
    return walk.finish()


class _Walk:
    """The silhouettes of one walk, each normalised as soon as its frame is there.

    Neither frames nor strips of them are kept.
    """

    def __init__(self, clean: bool, budget: Budget) -> None:
        self._clean = clean
        self._budget = budget
        self._dropped: Counter[str] = Counter()
        self._sizes: list[Size] = []
        self._normalised: list[Frame | str] = []

    def add(self, frame: Frame) -> None:
        """Take the next frame."""
        self._budget.check_time()
        if not self._clean:
            self._normalised.append(_normalise_one(frame, cv2.boundingRect(frame)[3]))
            return
        person = find_person(frame, self._budget)
        if isinstance(person, str):
            self._dropped[person] += 1
        else:
            self._sizes.append(person.size)
            self._normalised.append(_normalise_one(person.strip, person.size.height))

    def finish(self) -> tuple[Silhouettes, dict[str, int]]:
        """What remains of the walk, and how many frames went for each reason."""
        dropped = self._dropped.copy()
        reasons = find_unsteady(self._sizes) if self._clean else [""] * len(self._normalised)
        dropped.update(reason for reason in reasons if reason)
        steady = [
            item for item, reason in zip(self._normalised, reasons, strict=True) if not reason
        ]
        dropped.update(item for item in steady if isinstance(item, str))
        kept = [item for item in steady if not isinstance(item, str)]
        silhouettes = np.stack(kept) if kept else np.zeros((0, HEIGHT, WIDTH), np.uint8)
        return silhouettes, dict(dropped)


def _normalise_one(frame: Frame, height: int) -> Frame | str:
    """A frame with something in so many rows normalised, or the reason why it can't be."""
    if 0 < height * _FLATTEST < frame.shape[1]:
        return FRAGMENT  # a speck in a wide frame would be blown up to an image of many megabytes
    silhouette = normalise(frame)
    return EMPTY if silhouette is None else silhouette

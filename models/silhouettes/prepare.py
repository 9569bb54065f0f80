"""Frames as they were sent to silhouettes a network takes: clean, normalise, judge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from models.silhouettes.budget import Budget, DecodeLimits
from models.silhouettes.cleaning import EMPTY, FRAGMENT, Size, find_person, find_unsteady
from models.silhouettes.decode import decode_within
from models.silhouettes.errors import SequenceTooLarge
from models.silhouettes.members import NO_MEMORY
from models.silhouettes.normalise import CUT_WIDTH, HEIGHT, WIDTH, normalise, pad
from models.silhouettes.quality import judge
from models.silhouettes.types import Frame, Quality, Silhouettes

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
        return prepare(decode_within(data, budget), clean=clean, budget=budget)
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
    if shapes not in ({(HEIGHT, WIDTH)}, {(HEIGHT, CUT_WIDTH)}):
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


def _normalise_all(
    frames: Sequence[Frame], clean: bool, budget: Budget
) -> tuple[Silhouettes, dict[str, int]]:
    """Normalise each person as soon as found: strips of all frames would double what is held."""
    dropped: Counter[str] = Counter()
    sizes: list[Size] = []
    normalised: list[Frame | str] = []
    for frame in frames:
        budget.check_time()
        if not clean:
            normalised.append(_normalise_one(frame))
            continue
        person = find_person(frame, budget)
        if isinstance(person, str):
            dropped[person] += 1
        else:
            sizes.append(person.size)
            normalised.append(_normalise_one(person.strip))
    reasons = find_unsteady(sizes) if clean else [""] * len(normalised)
    dropped.update(reason for reason in reasons if reason)
    steady = [item for item, reason in zip(normalised, reasons, strict=True) if not reason]
    dropped.update(item for item in steady if isinstance(item, str))
    kept = [item for item in steady if not isinstance(item, str)]
    silhouettes = np.stack(kept) if kept else np.zeros((0, HEIGHT, WIDTH), np.uint8)
    return silhouettes, dict(dropped)


def _normalise_one(frame: Frame) -> Frame | str:
    """A frame normalised, or the reason why it can't be."""
    if _is_flat(frame):
        return FRAGMENT
    silhouette = normalise(frame)
    return EMPTY if silhouette is None else silhouette


def _is_flat(frame: Frame) -> bool:
    """Whether a speck in a wide frame would be blown up to an image of many megabytes."""
    height = cv2.boundingRect(frame)[3]
    return height > 0 and frame.shape[1] > _FLATTEST * height

"""Frames as they were sent to silhouettes a network takes: clean, normalise, judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.budget import Budget, DecodeLimits
from models.silhouettes.cleaning import EMPTY, FRAGMENT, Size, find_person, unlike_neighbours
from models.silhouettes.decode import decode_within
from models.silhouettes.errors import SequenceTooLarge
from models.silhouettes.frame import Frame, Silhouettes
from models.silhouettes.normalise import CUT_WIDTH, HEIGHT, WIDTH, normalise, pad
from models.silhouettes.quality import Quality, judge

_OFF_CENTRE = 4  # columns
_MARGIN = 4  # rows
_MOST = 0.8  # of the frames; the others may hold a slip of whoever prepared them
_FLATTEST = 64  # columns of the frame for each row of the person


class Prepared(NamedTuple):
    """A sequence that may be embedded.

    Attributes:
        silhouettes: uint8 `[s, 64, 64]`.
        quality: the judgement on it; its issues are warnings.
    """

    silhouettes: Silhouettes
    quality: Quality


def take(data: bytes, limits: DecodeLimits, *, clean: bool = True) -> Prepared:
    """Decode, clean, normalise and judge one walk, all within one budget.

    Args:
        data: the file's bytes; hostile ones are expected.
        limits: what it may cost.
        clean: as `prepare` has it.

    Raises:
        SequenceError: it was refused; no other error comes of bytes.
    """
    budget = Budget(limits)
    try:
        return prepare(decode_within(data, budget), clean=clean, budget=budget)
    except MemoryError as error:
        raise _out_of_memory() from error
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        raise _out_of_memory() from error


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
        budget: whose time it may take; that of the default limits when None.

    Raises:
        PoorSequence: no gait can be recognised in it.
        SequenceTooLarge: it takes longer than the budget has time.
    """
    if is_prepared(frames):
        silhouettes, dropped = _take_prepared(frames)
    else:
        budget = budget or Budget(DecodeLimits())
        silhouettes, dropped = _normalise_all(frames, budget, clean_first=clean)
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
    frames: Sequence[Frame], budget: Budget, *, clean_first: bool
) -> tuple[Silhouettes, dict[str, int]]:
    """Normalise each frame as soon as its person is found, and drop the odd ones at the end.

    Strips of all of them would take as much memory as the frames do.
    """
    counts: Counter[str] = Counter()
    found: list[Frame | str] = []
    sizes: list[Size] = []
    for frame in frames:
        budget.check_time()
        strip = frame
        if clean_first:
            person = find_person(frame)
            if isinstance(person, str):
                counts[person] += 1
                continue
            strip = person.strip
            sizes.append(person.size)
        found.append(_normalise(strip))
    reasons = unlike_neighbours(sizes) if clean_first else [""] * len(found)
    kept: list[NDArray[np.uint8]] = []
    for silhouette, reason in zip(found, reasons, strict=True):
        if reason or isinstance(silhouette, str):
            counts[reason or str(silhouette)] += 1
        else:
            kept.append(silhouette)
    silhouettes = np.stack(kept) if kept else np.zeros((0, HEIGHT, WIDTH), np.uint8)
    return silhouettes, dict(counts)


def _normalise(frame: Frame) -> Frame | str:
    """A normalised frame, or why there is none."""
    if _is_flat(frame):
        return FRAGMENT
    silhouette = normalise(frame)
    return EMPTY if silhouette is None else silhouette


def _is_flat(frame: Frame) -> bool:
    """Whether a speck in a wide frame would be blown up to an image of many megabytes."""
    rows = np.flatnonzero(frame.any(axis=1))
    return rows.size > 0 and frame.shape[1] > _FLATTEST * (rows[-1] - rows[0] + 1)


def _out_of_memory() -> SequenceTooLarge:
    return SequenceTooLarge(
        "reading it takes more memory than a sequence may; send fewer or smaller frames"
    )

"""Frames as they were sent to silhouettes a network takes: clean, normalise, judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.silhouettes import cleaning
from models.silhouettes.cleaning import EMPTY, FRAGMENT
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


def prepare(frames: Sequence[Frame], *, clean: bool = True) -> Prepared:
    """Clean, normalise and judge one walk.

    Frames that are normalised already pass untouched (64 x 44 ones get their margins back), except
    that empty ones are dropped.

    Args:
        frames: uint8 `[h, w]` each, of any sizes.
        clean: whether to look for the person in each frame; without, whole frames are normalised
            as the field does, noise and all.

    Raises:
        PoorSequence: no gait can be recognised in it.
    """
    if is_prepared(frames):
        silhouettes, dropped = _take_prepared(frames)
    else:
        silhouettes, dropped = _normalise_all(frames, clean_first=clean)
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
    frames: Sequence[Frame], *, clean_first: bool
) -> tuple[Silhouettes, dict[str, int]]:
    cleaned, dropped = cleaning.clean(frames) if clean_first else (list(frames), {})
    counts = Counter(dropped)
    kept: list[NDArray[np.uint8]] = []
    for frame in cleaned:
        if _is_flat(frame):
            counts[FRAGMENT] += 1
            continue
        silhouette = normalise(frame)
        if silhouette is None:
            counts[EMPTY] += 1
        else:
            kept.append(silhouette)
    silhouettes = np.stack(kept) if kept else np.zeros((0, HEIGHT, WIDTH), np.uint8)
    return silhouettes, dict(counts)


def _is_flat(frame: Frame) -> bool:
    """Whether a speck in a wide frame would be blown up to an image of many megabytes."""
    rows = np.flatnonzero(frame.any(axis=1))
    return rows.size > 0 and frame.shape[1] > _FLATTEST * (rows[-1] - rows[0] + 1)

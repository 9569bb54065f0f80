"""Pooling over the frames of a sequence and over horizontal strips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_lengths(lengths: Tensor | Sequence[int], frames: int) -> Tensor:
    """`lengths` as an int64 tensor `[n]`, after checking that they divide `frames` laid end to end.

    Raises:
        ValueError: no sequence, an empty one, or lengths that don't add up to `frames`.
    """
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, dtype=torch.int64)
    if lengths.ndim != 1 or lengths.dtype != torch.int64:
        raise ValueError(
            f"lengths must be int64 [n], not {lengths.dtype} {list(lengths.shape)}; "
            "one number of frames for each sequence"
        )
    if len(lengths) == 0 or int(lengths.min()) < 1:
        raise ValueError("every sequence needs at least one frame")
    if int(lengths.sum()) != frames:
        raise ValueError(f"lengths add up to {int(lengths.sum())}, but there are {frames} frames")
    return lengths


def max_over_sequences(frames: Tensor, lengths: Tensor) -> Tensor:
    """Maximum over each run of `lengths[i]` consecutive frames.

    No padding: every frame is read once. Equal maxima share the gradient evenly, as in
    `Tensor.amax`.

    Args:
        frames: `[sum(lengths), ...]`.
        lengths: int64 `[n]`, each at least 1 (see `check_lengths`).

    Returns:
        `[n, ...]`.
    """
    # `unsafe` skips the check of the lengths, which would wait for the device
    return torch.segment_reduce(
        frames.contiguous(), "max", lengths=lengths.to(frames.device), axis=0, unsafe=True
    )


def strip_pool(maps: Tensor, parts: int) -> Tensor:
    """Horizontal pooling: maximum plus mean over each of `parts` strips of equal height.

    Source: arXiv 1804.05275, with the single scale that GaitBase and DeepGaitV2 use.

    Args:
        maps: `[n, c, h, w]`.
        parts: a divisor of h.

    Returns:
        `[n, c, p]`, the head's strip first.

    Raises:
        ValueError: the rows can't be divided into `parts` strips.
    """
    rows = maps.shape[2]
    if rows % parts:
        raise ValueError(f"{rows} rows of features can't be divided into {parts} equal parts")
    strips = maps.reshape(*maps.shape[:2], parts, -1)
    return strips.amax(-1) + strips.mean(-1)

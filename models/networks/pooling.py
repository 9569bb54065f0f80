"""Pooling over the frames of a sequence and over horizontal strips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

PYRAMID: Final = (16, 8, 4, 2, 1)
"""Strips of each level of a pyramid (arXiv 1804.05275); GaitSet has two."""


def check_lengths(lengths: Tensor | Sequence[int], frames: int) -> Tensor:
    """`lengths` as an int64 tensor `[n]`, after checking that they divide `frames` laid end to end.

    Inside `torch.compile` only the shape is checked.

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
    if torch.compiler.is_compiling():
        return lengths  # a graph has no values to look at
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
    maxima: Tensor = _SegmentMax.apply(  # type: ignore[no-untyped-call]
        frames.contiguous(), lengths.to(frames.device)
    )
    return maxima


class _SegmentMax(torch.autograd.Function):
    """`torch.segment_reduce` with a gradient of our own.

    Torch's (2.13, CPU) gives each of several equal maxima the whole of a negative gradient, and
    equal maxima are common: wherever nothing but background is seen.
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, lengths: Tensor) -> Tensor:
        # `unsafe` skips a check of the lengths that would wait for the device
        maxima = torch.segment_reduce(frames, "max", lengths=lengths, axis=0, unsafe=True)
        ctx.save_for_backward(frames, lengths, maxima)
        return maxima

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        frames, lengths, maxima = ctx.saved_tensors
        owners = torch.repeat_interleave(lengths, output_size=len(frames))
        is_maximum = frames == maxima[owners]
        # counted in float32: bfloat16 can't count beyond 256
        winners = torch.zeros(maxima.shape, device=frames.device)
        winners = winners.index_add(0, owners, is_maximum.float())
        share = (gradients[0] / winners).to(frames.dtype)
        return is_maximum * share[owners], None


def windows(lengths: Sequence[int], frames: int) -> tuple[list[int], list[int]]:
    """Cut sequences into windows of about as many frames, those of a sequence as alike as can be.

    Args:
        lengths: of the sequences, each at least 1.
        frames: wanted in a window; sequences shorter than one and a half of it stay whole.

    Returns:
        The lengths of all windows, laid end to end, and how many of them each sequence has.
    """
    counts = [max(1, (length + frames // 2) // frames) for length in lengths]
    cut = [
        length // count + (window < length % count)
        for length, count in zip(lengths, counts, strict=True)
        for window in range(count)
    ]
    return cut, counts


def mean_over_windows(pooled: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean of each run of `counts[i]` windows: `[sum(counts), ...]` to `[n, ...]`."""
    return torch.stack([own.mean(0) for own in torch.split(pooled, list(counts))])


def strip_bounds(parts: int) -> tuple[list[tuple[int, int]], int]:
    """Where the strips of a network of so many parts lie.

    62 parts are two pyramids, all others strips of equal height.

    Returns:
        Of each part its first row and the row behind its last, and the rows of the full height.
    """
    rows, levels = (PYRAMID[0], PYRAMID * 2) if parts == 2 * sum(PYRAMID) else (parts, (parts,))
    bounds = [
        (rows // level * strip, rows // level * (strip + 1))
        for level in levels
        for strip in range(level)
    ]
    return bounds, rows


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
    # Where channels are last the gradient lies as the maps do.
    count, channels = maps.shape[:2]
    strips = maps.movedim(1, -1).reshape(count, parts, -1, channels)
    return (strips.amax(2) + strips.mean(2)).transpose(1, 2)

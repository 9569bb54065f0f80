"""Augmentation of a whole batch on its device. A few tensor operations, never a loop over frames.

What is drawn is drawn on the host from a `torch.Generator`, so the device never waits for a
decision and the same seed gives bit-equal views on every call: teacher and student see the same.
Only the sequences that an option hits are touched; the others stay the exact pixels.

The order: lost frames, geometry with the cut to 44 columns, flip, outline, erasing, strips, holes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.data.options import Augmentation, Masking, Swap
from training.data.pack import POSE_MAPS, SIDE

COLUMNS = 44
"""Columns of what networks see: the middle of 64."""

_MARGIN = (SIDE - COLUMNS) // 2


class Stream(IntEnum):
    """Of random numbers. Sampling has 1 and 2: what is drawn here must not follow those."""

    WEAK = 3
    STRONG = 4
    SWAP = 5
    MASK = 6


def generator(seed: int, step: int, rank: int = 0, stream: Stream = Stream.WEAK) -> torch.Generator:
    """A generator on the host for the augmentation of one batch: same arguments, same views.

    Each view has a stream of its own, so that adding one leaves the others as they were.
    """
    # Hashed to 32 bits, because torch's host generator ignores the others.
    state = np.random.SeedSequence([stream, seed, step, rank]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(state))


def plain(silhouettes: Tensor) -> Tensor:
    """Silhouettes uint8 [n, s, 64, 64] as networks see them: float32 [n, s, 64, 44] in [0, 1].

    Or walks with pose maps, [n, s, 3, 64, 64].
    """
    return silhouettes[..., _MARGIN : SIDE - _MARGIN].float().div_(255)


class Varied(NamedTuple):
    """Augmented clips.

    Attributes:
        views: float32 [n, s, 64, 44] in [0, 1], or [n, s, 3, 64, 44].
        lost: bool [n, 64], the rows that a lost strip took from every frame.
    """

    views: Tensor
    lost: Tensor


def augment(silhouettes: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """As `vary`; returns the views alone."""
    return vary(silhouettes, augmentation, generator).views


def vary(silhouettes: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Varied:
    """Vary silhouettes and cut them to what networks see.

    Pose maps are moved and turned with their silhouettes, and lose the same frames. A segmenter's
    other faults are not theirs. What is drawn for silhouettes does not depend on them.

    Args:
        silhouettes: uint8 [n, s, 64, 64], or with pose maps [n, s, 3, 64, 64], the silhouette
            last; not changed.
        augmentation: what is done, and how often.
        generator: on the host; its state decides everything that is drawn.

    Returns:
        The views, equal to `plain` when every probability is 0, and the rows that are lost.

    Raises:
        ValueError: the silhouettes have another shape or dtype.
    """
    forms = ((SIDE, SIDE), (1 + POSE_MAPS, SIDE, SIDE))
    if silhouettes.dtype != torch.uint8 or silhouettes.shape[2:] not in forms:
        raise ValueError(
            f"silhouettes must be uint8 [n, s, {SIDE}, {SIDE}] or [n, s, 3, {SIDE}, {SIDE}], "
            f"not {silhouettes.dtype} {list(silhouettes.shape)}"
        )
    options = augmentation
    silhouettes = _drop_frames(silhouettes, options, generator)
    views = plain(silhouettes)
    _warp(views, silhouettes, options, generator)
    _flip(views, options, generator)
    seen = silhouettes_of(views)  # in place: a view of the same memory
    _reshape_parts(seen, options, generator)
    _erase(seen, options, generator)
    lost = _lose_strips(seen, options, generator)
    _make_holes(seen, options, generator)
    return Varied(views, lost.to(views.device))


def silhouettes_of(walks: Tensor) -> Tensor:
    """The silhouettes [n, s, h, w] of walks that may have pose maps [n, s, 3, h, w] before them."""
    return walks[:, :, -1] if walks.ndim == 5 else walks


# Between walks, and for the student alone ----------------------------------------------------


def swap_patches(
    silhouettes: Tensor, groups: Sequence[object], options: Swap, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Let pairs of walks of one group exchange patches, the same in all frames.

    Args:
        silhouettes: uint8 [n, s, …, 64, 64]; not changed.
        groups: [n], equal for walks that may exchange: their subject, perhaps their view too.
        options: the grid and how much of it.
        generator: on the host; its state decides pairs and patches.

    Returns:
        The silhouettes, and int64 [n] on their device: with whom each walk was paired, whether or
        not they exchanged anything; itself where a group's number is odd.
    """
    n = len(silhouettes)
    members: dict[object, list[int]] = {}
    for walk in torch.randperm(n, generator=generator).tolist():
        members.setdefault(groups[walk], []).append(walk)
    pairs = torch.tensor(
        [
            (own[i], own[i + 1])
            for _, own in sorted(members.items(), key=lambda group: min(group[1]))
            for i in range(0, len(own) - 1, 2)
        ],
        dtype=torch.int64,
    ).reshape(-1, 2)
    partners = torch.arange(n)
    partners[pairs[:, 0]], partners[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    hit = pairs[_hit(len(pairs), options.probability, generator)]
    device = silhouettes.device
    if len(hit):
        count = options.rows * options.columns
        wanted = _uniform((len(hit), 1), *options.share, generator) * count
        order = torch.rand(len(hit), count, generator=generator).argsort(dim=1).argsort(dim=1)
        chosen = (order < wanted.round().clamp(min=1)).reshape(-1, options.rows, options.columns)
        place = torch.arange(SIDE)
        grid = chosen[:, place * options.rows // SIDE][..., place * options.columns // SIDE]
        grid = grid.reshape(-1, *[1] * (silhouettes.ndim - 3), SIDE, SIDE).to(device)
        first, second = hit.to(device).unbind(1)
        swapped = silhouettes.clone()
        swapped[first] = torch.where(grid, silhouettes[second], silhouettes[first])
        swapped[second] = torch.where(grid, silhouettes[first], silhouettes[second])
        silhouettes = swapped
    return silhouettes, partners.to(device)


def mask(views: Tensor, options: Masking, generator: torch.Generator) -> Tensor:
    """Clips [n, s, …, 64, 44] of which some have lost strips, and some frames; `views` stay."""
    hit = _hit(len(views), options.probability, generator)
    masked = views.clone()
    if len(hit):
        s = views.shape[1]
        strips = _chosen(len(hit), options.rows, options.share, generator)
        frames = _chosen(len(hit), s, options.share, generator)
        of_frames = (torch.rand(len(hit), generator=generator) < 0.5)[:, None, None]
        rows = strips[:, torch.arange(SIDE) * options.rows // SIDE]
        gone = torch.where(of_frames, frames[:, :, None], rows[:, None, :])[..., None]
        _clear(masked, hit, gone if views.ndim == 4 else gone.unsqueeze(2))
    return masked


def _chosen(m: int, of: int, share: float, generator: torch.Generator) -> Tensor:
    """Boolean [m, of] with about so large a share True, never all. On the host."""
    count = min(max(round(share * of), 1), of - 1)
    return torch.rand(m, of, generator=generator).argsort(dim=1).argsort(dim=1) < count


# Drawing -------------------------------------------------------------------------------------


def _hit(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """Indices [m] of the sequences that an option hits, on the host."""
    return torch.nonzero(torch.rand(n, generator=generator) < probability).flatten()


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low


def _integers(shape: tuple[int, ...], low: int, high: int, generator: torch.Generator) -> Tensor:
    """int64 in low to high, both included."""
    return torch.randint(low, high + 1, shape, generator=generator)


# Geometry ------------------------------------------------------------------------------------


def _flip(views: Tensor, options: Augmentation, generator: torch.Generator) -> None:
    hit = _hit(len(views), options.flip, generator).to(views.device)
    if len(hit):
        views[hit] = views[hit].flip(-1)


def _warp(
    views: Tensor, silhouettes: Tensor, options: Augmentation, generator: torch.Generator
) -> None:
    """Resample the sequences that have a geometric change, all changes in one interpolation."""
    homographies, hit = draw_homographies(len(views), options, generator)
    if len(hit):
        device = views.device
        hit = hit.to(device)
        frames = silhouettes[hit].flatten(1, -3)  # pose maps are frames among others
        warped = warp(frames, homographies.to(device, torch.float32))
        views[hit] = warped.reshape(-1, *views.shape[1:])


def draw_homographies(
    n: int, options: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw perspective, rotation, scale and shift.

    Returns:
        Homographies float64 [m, 3, 3] that take a pixel (x, y) of the view, in columns and rows of
        64 x 64, to the pixel that it shows; and the sequences [m] that have one. On the host.
    """
    perspective = _hit(n, options.perspective, generator)
    rotate = _hit(n, options.rotate, generator)
    scale = _hit(n, options.scale, generator)
    shift = _hit(n, options.shift, generator)
    inwards = options.perspective_columns - 1
    insets = _integers((len(perspective), 4), 0, inwards, generator)
    degrees = torch.zeros(n, dtype=torch.float64)
    limit = options.rotate_degrees
    degrees[rotate] = _uniform((len(rotate),), -limit, limit, generator)
    factor = torch.ones(n, dtype=torch.float64)
    limit = options.scale_range
    factor[scale] = _uniform((len(scale),), 1 - limit, 1 + limit, generator)
    offset = torch.zeros(n, 2, dtype=torch.float64)
    limit = options.shift_pixels
    offset[shift] = _uniform((len(shift), 2), -limit, limit, generator)

    homographies = _similarities(degrees, factor, offset)
    homographies[perspective] = _perspectives(insets) @ homographies[perspective]
    changed = torch.zeros(n, dtype=torch.bool)
    changed[torch.cat([perspective, rotate, scale, shift])] = True
    hit = torch.nonzero(changed).flatten()
    return homographies[hit], hit


def _similarities(degrees: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """[n, 3, 3]: undo a shift (x, y), a scaling and a turn (counter-clockwise) in the middle."""
    middle = (SIDE - 1) / 2
    angle = degrees * (math.pi / 180)
    cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
    x, y = offset[:, 0] + middle, offset[:, 1] + middle
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = [
        torch.stack([cos, -sin, middle - cos * x + sin * y], -1),
        torch.stack([sin, cos, middle - sin * x - cos * y], -1),
        torch.stack([zero, zero, one], -1),
    ]
    return torch.stack(rows, -2)


def _perspectives(insets: Tensor) -> Tensor:
    """[m, 3, 3]: the four corners of the view show points this many columns [m, 4] further in.

    Corners in the order top left, top right, bottom right, bottom left of the 44 columns, as
    OpenGait draws them for silhouettes of 44 columns.
    """
    left, right, bottom = float(_MARGIN), float(SIDE - _MARGIN), float(SIDE)
    corners = torch.tensor(
        [[left, 0.0], [right, 0.0], [right, bottom], [left, bottom]], dtype=torch.float64
    )
    shown = corners.repeat(len(insets), 1, 1)
    shown[..., 0] += insets * torch.tensor([1, -1, -1, 1])
    # Eight equations for eight unknowns h: x' (h6 x + h7 y + 1) = h0 x + h1 y + h2, and y' alike.
    equations = torch.zeros(len(insets), 8, 8, dtype=torch.float64)
    ones = torch.ones(len(insets), 4, 1, dtype=torch.float64)
    points = torch.cat([corners.expand(len(insets), 4, 2), ones], -1)
    equations[:, 0::2, 0:3] = points
    equations[:, 1::2, 3:6] = points
    equations[:, 0::2, 6:8] = -points[..., :2] * shown[..., :1]
    equations[:, 1::2, 6:8] = -points[..., :2] * shown[..., 1:]
    solution = torch.linalg.solve(equations, shown.reshape(-1, 8))
    return torch.cat([solution, ones[:, 0]], -1).reshape(-1, 3, 3)


def warp(silhouettes: Tensor, homographies: Tensor) -> Tensor:
    """Resample bilinearly; outside the silhouette is background.

    Args:
        silhouettes: uint8 [m, s, 64, 64].
        homographies: float32 [m, 3, 3] from view pixel to source pixel, on the same device.

    Returns:
        float32 [m, s, 64, 44] in [0, 1], the middle columns of the view.
    """
    device = silhouettes.device
    y, x = torch.meshgrid(
        torch.arange(SIDE, device=device, dtype=torch.float32),
        torch.arange(_MARGIN, SIDE - _MARGIN, device=device, dtype=torch.float32),
        indexing="ij",
    )
    view = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
    source = view @ homographies.transpose(1, 2)  # [m, 64 * 44, 3]
    pixels = source[..., :2] / source[..., 2:]
    grid = (pixels * (2 / (SIDE - 1)) - 1).reshape(-1, SIDE, COLUMNS, 2)
    # The frames of a sequence are the channels of an image: they share the grid and its weights.
    return functional.grid_sample(
        silhouettes.float().div_(255),
        grid,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    ).clamp_(0, 1)


# Outline -------------------------------------------------------------------------------------


def _reshape_parts(views: Tensor, options: Augmentation, generator: torch.Generator) -> None:
    """Grow, shrink or blur a horizontal part of the body, the same rows in all frames."""
    for probability, change in (
        (options.dilate, _grown),
        (options.erode, _shrunk),
        (options.blur, _blurred),
    ):
        hit = _hit(len(views), probability, generator)
        if len(hit):
            rows = _band(len(hit), options.part_rows, generator).to(views.device)
            hit = hit.to(views.device)
            before = views[hit]
            views[hit] = torch.where(rows[:, None, :, None], change(before), before)


def _grown(views: Tensor) -> Tensor:
    return _neighbourhood(views, torch.maximum)


def _shrunk(views: Tensor) -> Tensor:
    return _neighbourhood(views, torch.minimum)


def _neighbourhood(views: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Pick over 3 x 3 pixels. Row- and column-wise: on a CPU a tenth of the time of max_pool2d."""
    for dimension in (-1, -2):
        result = views.clone()
        length = views.shape[dimension] - 1
        for to, source in ((1, 0), (0, 1)):
            part = result.narrow(dimension, to, length)
            part.copy_(pick(part, views.narrow(dimension, source, length)))
        views = result
    return views


def _blurred(views: Tensor) -> Tensor:
    return functional.avg_pool2d(views, 3, stride=1, padding=1)


def _band(m: int, least_most: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boolean [m, 64], True in one run of `least_most` rows. On the host."""
    return _run(_integers((m,), *least_most, generator), SIDE, generator)


# Faults --------------------------------------------------------------------------------------


def _erase(views: Tensor, options: Augmentation, generator: torch.Generator) -> None:
    """A rectangle goes, the same in all frames."""
    hit = _hit(len(views), options.erase, generator)
    if not len(hit):
        return
    area = _uniform((len(hit),), *options.erase_area, generator) * SIDE * COLUMNS
    flat = -math.log(options.erase_aspect)
    aspect = torch.exp(_uniform((len(hit),), -flat, flat, generator))
    height = torch.sqrt(area * aspect).round().clamp(1, SIDE)
    width = torch.sqrt(area / aspect).round().clamp(1, COLUMNS)
    rows = _run(height, SIDE, generator)
    columns = _run(width, COLUMNS, generator)
    _clear(views, hit, (rows[:, :, None] & columns[:, None, :])[:, None])


def _lose_strips(views: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Some rows are lost for some consecutive frames, as when head, feet or a chunk are missed.

    Returns bool [n, 64]: the rows lost in all frames. On the host.
    """
    gone = torch.zeros(len(views), SIDE, dtype=torch.bool)
    hit = _hit(len(views), options.strips, generator)
    if not len(hit):
        return gone
    s = views.shape[1]
    rows = _band(len(hit), options.strip_rows, generator)
    share = _uniform((len(hit),), *options.strip_frames, generator)
    frames = _run((share * s).round().clamp(1, s), s, generator)
    _clear(views, hit, (frames[:, :, None] & rows[:, None, :])[..., None])
    gone[hit] = rows & frames.all(dim=1, keepdim=True)
    return gone


def _make_holes(views: Tensor, options: Augmentation, generator: torch.Generator) -> None:
    """A square hole, at another place in each frame that has one."""
    hit = _hit(len(views), options.holes, generator)
    if not len(hit):
        return
    s = views.shape[1]
    holed = torch.rand(len(hit), s, generator=generator) < options.holes_frames
    size = _integers((len(hit), s), *options.hole_pixels, generator)
    rows = _run(size, SIDE, generator)
    columns = _run(size, COLUMNS, generator)
    _clear(views, hit, holed[..., None, None] & rows[..., :, None] & columns[..., None, :])


def _drop_frames(silhouettes: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Lost frames: the last one before stands in. The first frame is never lost."""
    n, s = silhouettes.shape[:2]
    hit = _hit(n, options.drop, generator)
    if not len(hit):
        return silhouettes
    lost = torch.rand(len(hit), s, generator=generator) < options.drop_frames
    lost[:, 0] = False
    source = torch.arange(s).expand(len(hit), s).masked_fill(lost, 0).cummax(1).values
    kept = silhouettes.clone()
    device = silhouettes.device
    hit, source = hit.to(device), source.to(device)
    kept[hit] = silhouettes[hit[:, None], source]
    return kept


def _run(length: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Boolean [..., size], True in one run of `length` [...] places, anywhere. On the host."""
    start = torch.floor(_uniform(tuple(length.shape), 0, 1, generator) * (size - length + 1))
    place = torch.arange(size)
    return (place >= start[..., None]) & (place < (start + length)[..., None])


def _clear(views: Tensor, hit: Tensor, mask: Tensor) -> None:
    """Make background of what `mask`, broadcast over [m, s, 64, 44], covers in sequences `hit`."""
    hit, mask = hit.to(views.device), mask.to(views.device)
    views[hit] = views[hit].masked_fill(mask, 0.0)

"""What segmentation does to an outline: a segmenter's faults, drawn once a walk.

Faults live in two places: on the person (dark hair before a dark wall is lost in frame after frame)
and in the scene (a doorpost that looks like the trousers bites as they pass). All frames of a walk
are treated as one tall image, so each step is one call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.rendering.skeleton import Floats

Frames = NDArray[np.uint8]

MARGIN: Final = 8
"""Empty rows and columns around the person, so that frames of the tall image never touch."""


@dataclass(frozen=True)
class Faults:
    """How a walk is segmented badly. Lengths are shares of the person's height.

    Attributes:
        ragged: strength of the noise that moves the border, 0 to 1.
        block: side of the squares in which noise comes.
        coarse: whether the outline itself is made of such squares.
        grow: how far the whole outline grows on every side (negative: shrinks).
        opening: side of the square that thin things must contain to survive, 0 for none.
        lost: share of the person that looks like the scene.
        flicker: how much of that changes from frame to frame, 0 to 1.
        band: rows (from the top, as share) at which a slit tends to open, none if negative.
        band_height: height of the slit.
        missing: what is gone for some frames: rows from, to.
        missing_frames: first frame and number of frames of that.
        shadow: length of the shadow merged with the feet, 0 for none; negative falls to the left.
        shadow_height: its height.
        merged: how far a piece of the scene sticks out beside the person that it is taken for a
            part of, 0 for none; negative to the left.
        merged_rows: where, as shares of the height from the top.
        merged_frames: first frame and number of frames of that.
        occluder: width of an upright thing that hides part of the person while passing, 0 for none.
        specks: share of frames with blobs of the scene in them.
        dropped: share of frames that are not there.
    """

    ragged: float = 0.0
    block: float = 0.0
    coarse: bool = False
    grow: float = 0.0
    opening: float = 0.0
    lost: float = 0.0
    flicker: float = 0.3
    band: float = -1.0
    band_height: float = 0.03
    missing: tuple[float, float] = (0.0, 0.0)
    missing_frames: tuple[int, int] = (0, 0)
    shadow: float = 0.0
    shadow_height: float = 0.03
    merged: float = 0.0
    merged_rows: tuple[float, float] = (0.0, 0.0)
    merged_frames: tuple[int, int] = (0, 0)
    occluder: float = 0.0
    specks: float = 0.0
    dropped: float = 0.0


def draw_faults(rng: np.random.Generator, *, frames: int, severity: float) -> Faults:
    """Draw the faults of one walk.

    Args:
        rng: source of every draw.
        frames: length of the walk.
        severity: 0 gives clean outlines, 1 the mixture that old background subtraction leaves, more
            is worse.
    """

    def happens(chance: float) -> bool:
        return bool(rng.random() < chance * severity)

    # Background subtraction takes the soft border and the clothes' own shadow in: outlines are
    # rather too thick.
    grow = float(rng.triangular(-0.006, 0.005, 0.02)) * min(severity, 1.0)
    if not happens(0.8):
        return Faults(ragged=0.1 * float(severity > 0), grow=grow)

    def for_a_while(longest: int) -> tuple[int, int]:
        length = int(rng.integers(2, max(3, longest)))
        return int(rng.integers(0, frames - length + 1)), length

    missing, missing_frames = (0.0, 0.0), (0, 0)
    if happens(0.3):
        regions = [(0.0, 0.14), (0.0, 0.2), (0.9, 1.0), (0.75, 1.0), (0.1, 0.2), (0.3, 0.5)]
        missing = regions[rng.integers(len(regions))]
        # Mostly for a few frames; dark hair before a dark wall can be missing all the way.
        always = missing[0] == 0.0 and rng.random() < 0.4
        missing_frames = (0, frames) if always else for_a_while(frames // 3)
    merged, merged_rows, merged_frames = 0.0, (0.0, 0.0), (0, 0)
    if happens(0.15):
        merged = float(rng.choice([-1, 1]) * rng.uniform(0.03, 0.2))
        height = rng.uniform(0.05, 0.5)
        above = rng.uniform(0.0, 1.0 - height)
        merged_rows = (float(above), float(above + height))
        # Where somebody comes from or goes to, or a piece of wall all the way.
        merged_frames = (0, frames) if rng.random() < 0.1 else for_a_while(frames // 4)
    lost = 0.0
    if happens(0.75):
        # Now and then a shirt has the colour of the wall.
        lost = float(rng.uniform(0.1, 0.3) if rng.random() < 0.08 else rng.uniform(0.01, 0.11))
    shadow = 0.02 + 0.28 * rng.random() ** 2  # most are short
    return Faults(
        ragged=float(rng.uniform(0.0, 0.35)),
        block=float(rng.uniform(0.008, 0.025)),
        coarse=happens(0.25),
        grow=grow,
        opening=float(rng.uniform(0.01, 0.022)) if happens(0.5) else 0.0,
        lost=lost,
        flicker=float(rng.uniform(0.0, 0.5)),
        band=float(rng.choice([0.11, 0.14, rng.uniform(0.2, 0.9)])) if happens(0.35) else -1.0,
        band_height=float(rng.uniform(0.01, 0.05)),
        missing=missing,
        missing_frames=missing_frames,
        shadow=float(rng.choice([-1, 1]) * shadow) if happens(0.45) else 0.0,
        shadow_height=float(rng.uniform(0.015, 0.05)),
        merged=merged,
        merged_rows=merged_rows,
        merged_frames=merged_frames,
        occluder=float(rng.uniform(0.02, 0.12)) if happens(0.06) else 0.0,
        specks=float(rng.uniform(0.05, 0.6)) if happens(0.3) else 0.0,
        dropped=float(rng.uniform(0.03, 0.2)) if happens(0.25) else 0.0,
    )


def faults_again(
    usual: Faults, usual_frames: int, rng: np.random.Generator, *, frames: int
) -> Faults:
    """The faults of one more walk where they are usually like this: of the same kinds, as strong.

    Args:
        usual: drawn for a walk of `usual_frames`.
        usual_frames: what lasts as long is there all the way.
        rng: source of every draw.
        frames: length of this walk.
    """

    def near(value: float) -> float:
        return float(value * np.exp(rng.normal(0.0, 0.2)))

    def lasting(span: tuple[int, int]) -> tuple[int, int]:
        length = frames if span[1] == usual_frames else min(span[1], frames)
        return int(rng.integers(0, frames - length + 1)), length

    return replace(
        usual,
        ragged=near(usual.ragged),
        grow=usual.grow + float(rng.normal(0.0, 0.001)),
        opening=near(usual.opening),
        lost=near(usual.lost),
        flicker=near(usual.flicker),
        missing_frames=lasting(usual.missing_frames),
        shadow=near(usual.shadow),
        shadow_height=near(usual.shadow_height),
        merged=near(usual.merged),
        merged_frames=lasting(usual.merged_frames),
        occluder=near(usual.occluder),
        specks=min(near(usual.specks), 1.0),
        dropped=min(near(usual.dropped), 0.5),
    )


def spoil(clean: Frames, faults: Faults, path: Floats, rng: np.random.Generator) -> Frames:
    """Segment a walk badly.

    Args:
        clean: true outlines, uint8 0/255 `[s, h, w]`, with `MARGIN` empty pixels on every side.
        faults: what goes wrong.
        path: how far the scene has moved past the camera's view of the person, in pixels, `[s]`.
        rng: source of every draw.

    Returns:
        uint8 0/255 `[s, h, w]`: what a segmenter hands over, to be cleaned as any upload is. Frames
        may be fewer, and wider on both sides by what sticks out.
    """
    image = segmented(clean, faults, path, rng)
    return image[handed_over(faults, len(image), rng)]


def handed_over(faults: Faults, frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which of so many frames a segmenter does not lose, in order."""
    if not faults.dropped:
        return np.arange(frames)
    return np.flatnonzero(rng.random(frames) >= faults.dropped)


def segmented(clean: Frames, faults: Faults, path: Floats, rng: np.random.Generator) -> Frames:
    """As `spoil`, with all frames."""
    height = clean.shape[1]
    top, bottom = _rows(clean)
    tall = (bottom - top).astype(np.float64)
    row = (np.arange(height)[None, :] - top[:, None]) / np.maximum(tall, 1.0)[:, None]  # [s, h]
    usual = float(np.median(tall))
    block = max(1, round(faults.block * usual))
    image = _thickened(clean, round(2 * faults.grow * usual))
    aside = round(1.2 * max(abs(faults.shadow), abs(faults.merged)) * usual)
    image = np.pad(image, ((0, 0), (0, 0), (aside, aside)))
    if faults.shadow:
        _cast_shadow(image, faults, top, bottom, rng)
    if faults.merged:
        _merge(image, faults, row, usual, rng)
    if faults.lost:
        image[_camouflaged(image, faults, row, path, max(2, block), rng)] = 0
    if faults.band >= 0:
        _open_slit(image, faults, row, rng)
    first, count = faults.missing_frames
    if count:
        gone = (row >= faults.missing[0]) & (row <= faults.missing[1])
        gone[:first] = False
        gone[first + count :] = False
        image[gone] = 0
    if faults.occluder:
        _hide(image, faults, usual, path, rng)
    image[:, [*range(MARGIN - 2), *range(height - MARGIN + 2, height)]] = 0
    if faults.ragged:
        image = _frayed(image, faults.ragged, block, rng)
    if faults.coarse and block > 1:
        image = _squared(image, block)
    opening = round(faults.opening * usual)
    if opening > 1:
        image = _opened(image, opening)
    if faults.specks:
        image |= _specks(image.shape, faults, usual, rng)
    return image


def _thickened(image: Frames, pixels: int) -> Frames:
    """Grow (or for negative `pixels` shrink) the outline to be wider by so many pixels; a copy."""
    square = np.ones((1 + abs(pixels), 1 + abs(pixels)), np.uint8)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return np.asarray(change(_sheet(image), square), np.uint8).reshape(image.shape)


def _frayed(image: Frames, strength: float, block: int, rng: np.random.Generator) -> Frames:
    """Move the border by noise that comes in squares of `block` pixels."""
    blurred = cv2.blur(_sheet(image), (5, 5)).reshape(image.shape).astype(np.int16)
    noise = rng.normal(0.0, 62.0 * strength, _coarse(image.shape, block))
    inside = (blurred + _upsampled(noise, block, image.shape) > 127) & (blurred > 20)
    frayed = inside.astype(np.uint8) * np.uint8(255)
    return np.asarray(cv2.medianBlur(_sheet(frayed), 3), np.uint8).reshape(image.shape)


def _squared(image: Frames, block: int) -> Frames:
    """Make the outline of squares of `block` pixels, as a segmenter on a smaller image does."""
    sheet = _sheet(image)
    rows, columns = sheet.shape
    small = cv2.resize(sheet, (columns // block, rows // block), interpolation=cv2.INTER_AREA)
    filled = (small > 127).astype(np.uint8) * np.uint8(255)
    large = cv2.resize(filled, (columns, rows), interpolation=cv2.INTER_NEAREST)
    return np.asarray(large, np.uint8).reshape(image.shape)


def _opened(image: Frames, side: int) -> Frames:
    """Fill cracks and take away spikes thinner than `side` pixels."""
    square = np.ones((side, side), np.uint8)
    sheet = cv2.morphologyEx(_sheet(image), cv2.MORPH_CLOSE, square)
    sheet = cv2.morphologyEx(sheet, cv2.MORPH_OPEN, square)
    return np.asarray(sheet, np.uint8).reshape(image.shape)


def _sheet(image: Frames) -> Frames:
    """All frames below one another."""
    return image.reshape(-1, image.shape[-1])


def _rows(image: Frames) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First row of each frame's person and the one after its last."""
    some = np.any(image, axis=2)
    top = some.argmax(axis=1)
    bottom = image.shape[1] - some[:, ::-1].argmax(axis=1)
    return top, bottom


def _coarse(shape: tuple[int, ...], block: int) -> tuple[int, int, int]:
    return shape[0], -(-shape[1] // block), -(-shape[2] // block)


def _upsampled(noise: Floats, block: int, shape: tuple[int, ...]) -> NDArray[np.int16]:
    coarse = noise.astype(np.int16)
    if block > 1:
        coarse = coarse.repeat(block, axis=1).repeat(block, axis=2)
    return coarse[:, : shape[1], : shape[2]]


def _smooth_noise(
    rng: np.random.Generator, height: int, width: int, *, cell: tuple[float, float]
) -> NDArray[np.float32]:
    """Unit noise with features of about `cell` (rows, columns) pixels, `[h, w]`."""
    coarse = rng.normal(
        size=(max(2, round(height / cell[0])), max(2, round(width / cell[1])))
    ).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))


def _camouflaged(
    image: Frames,
    faults: Faults,
    row: Floats,
    path: Floats,
    block: int,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Where the person looks like what is behind: a texture on the person plus one in the scene."""
    _, height, width = image.shape
    # What is lost of a person who is hardly lost are spots, of others whole pieces of cloth.
    spot = 1.0 + 8.0 * faults.lost
    cell = (128 * spot * rng.uniform(0.03, 0.1), spot * height * 0.06)
    texture = _smooth_noise(rng, 128, width, cell=cell)
    on_person = texture[np.clip((row * 110).astype(int), 0, 127)]  # [s, h, w]
    shift = np.round(path - path.min()).astype(int)
    scene = _smooth_noise(
        rng, height, width + int(shift.max()), cell=(height * 0.06, height * rng.uniform(0.04, 0.2))
    )
    columns = shift[:, None] + np.arange(width)[None, :]
    behind = scene[:, columns].transpose(1, 0, 2)
    flicker = rng.normal(size=_coarse(image.shape, block)).astype(np.float32)
    flicker = flicker.repeat(block, axis=1).repeat(block, axis=2)[:, :height, :width]
    likeness = on_person + 0.8 * behind + faults.flicker * flicker
    inside = image > 0
    if not inside.any():
        return inside
    least = np.quantile(likeness[inside][::7], 1.0 - faults.lost)
    return np.asarray(inside & (likeness > least))


def _open_slit(image: Frames, faults: Faults, row: Floats, rng: np.random.Generator) -> None:
    frames, _, width = image.shape
    wander = np.cumsum(rng.normal(0.0, 0.004, frames))
    at = faults.band + wander - wander.mean()
    slit = np.abs(row - at[:, None]) < faults.band_height / 2
    open_ = _runs(rng, frames, chance=rng.uniform(0.2, 0.9), length=4)
    middle, half = width * rng.uniform(0.35, 0.65), width * rng.uniform(0.05, 0.4)
    columns = np.abs(np.arange(width) - middle) < half
    image[(slit & open_[:, None])[:, :, None] & columns] = 0


def _runs(
    rng: np.random.Generator, frames: int, *, chance: float, length: int
) -> NDArray[np.bool_]:
    """A random on/off row of about `chance` on, in runs of about `length`."""
    coarse = rng.random(frames // length + 2) < chance
    start = int(rng.integers(length))
    return coarse.repeat(length)[start : start + frames]


def _cast_shadow(
    image: Frames,
    faults: Faults,
    top: NDArray[np.intp],
    bottom: NDArray[np.intp],
    rng: np.random.Generator,
) -> None:
    width = image.shape[2]
    dark = _runs(rng, len(image), chance=0.8, length=5)
    for frame in np.flatnonzero(dark & (bottom - top > 8)):
        tall = float(bottom[frame] - top[frame])
        feet = image[frame, bottom[frame] - max(2, round(0.04 * tall)) : bottom[frame]]
        columns = np.flatnonzero(feet.any(axis=0))
        if not len(columns):
            continue
        length = faults.shadow * tall * rng.uniform(0.7, 1.2)
        thick = max(1, round(faults.shadow_height * tall * rng.uniform(0.7, 1.3)))
        start = columns[-1] if length > 0 else columns[0]
        left, right = sorted((int(start), int(np.clip(start + length, 2, width - 3))))
        image[frame, bottom[frame] - thick : bottom[frame], left : right + 1] = 255
        image[
            frame, bottom[frame] - max(1, thick // 2) : bottom[frame], columns[0] : columns[-1]
        ] = 255


def _merge(
    image: Frames, faults: Faults, row: Floats, tall: float, rng: np.random.Generator
) -> None:
    """Let a piece of the scene beside the person be taken for a part of them."""
    low, high = faults.merged_rows
    ends = np.sort(rng.uniform(low, high, 2))
    reach = rng.uniform(0.4, 1.0, 3)
    first, count = faults.merged_frames
    for frame in range(first, first + count):
        beside = (row[frame] >= low) & (row[frame] <= high)
        columns = np.flatnonzero(image[frame, beside].any(axis=0))
        if not len(columns):
            continue
        sizes = reach * abs(faults.merged) * tall * rng.uniform(0.7, 1.2, 3)
        for line in np.flatnonzero(beside):
            size = round(sizes[np.searchsorted(ends, row[frame, line])])
            if faults.merged > 0:
                image[frame, line, (columns[0] + columns[-1]) // 2 : columns[-1] + size] = 255
            else:
                left = max(0, columns[0] - size)
                image[frame, line, left : (columns[0] + columns[-1]) // 2] = 255


def _hide(
    image: Frames, faults: Faults, tall: float, path: Floats, rng: np.random.Generator
) -> None:
    width = image.shape[2]
    at = width / 2 - (path - path[rng.integers(len(path))])
    post = np.abs(np.arange(width)[None, :] - at[:, None]) < faults.occluder * tall / 2
    image[np.broadcast_to(post[:, None, :], image.shape)] = 0


def _specks(
    shape: tuple[int, ...], faults: Faults, tall: float, rng: np.random.Generator
) -> Frames:
    """Blobs of the scene that flicker up beside the person or touch it."""
    frames, height, width = shape
    found = np.zeros(shape, np.uint8)
    for frame in np.flatnonzero(rng.random(frames) < faults.specks):
        for _ in range(rng.integers(1, 4)):
            rows, columns = (max(2, round(tall * rng.uniform(0.01, 0.05))) for _ in range(2))
            top = rng.integers(2, max(3, height - rows - 2))
            left = rng.integers(2, max(3, width - columns - 2))
            found[frame, top : top + rows, left : left + columns] = 255
    return found

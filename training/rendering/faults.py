"""What segmentation does to an outline: the faults of background subtraction and of networks, drawn once a walk.

Faults live in two places: on the person (dark hair before a dark wall is lost in frame after frame) and in the scene (a doorpost that
looks like the trousers bites as they pass). All frames of a walk are treated as one tall image, so each step is one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.rendering.skeleton import Floats

Frames = NDArray[np.uint8]

MARGIN: Final = 6
"""Empty rows and columns a frame needs around the person, so that frames of the tall image never touch."""


@dataclass(frozen=True)
class Faults:
    """How a walk is segmented badly. Lengths are shares of the person's height unless said otherwise.

    Attributes:
        ragged: strength of the noise that moves the border, 0 to 1.
        block: side of the squares in which noise comes.
        grow: how far the whole outline grows (negative: shrinks), in pixels.
        opening: side of the square that thin things must contain to survive, 0 for none.
        lost: share of the person that looks like the scene.
        flicker: how much of that changes from frame to frame, 0 to 1.
        band: rows (from the top, as share) at which a slit tends to open, none if negative.
        band_height: height of the slit.
        missing: what is gone for some frames: rows from, to.
        missing_frames: first frame and number of frames of that.
        shadow: length of the shadow merged with the feet, 0 for none; negative falls to the left.
        shadow_height: its height.
        occluder: width of an upright thing that hides part of the person while passing, 0 for none.
        dropped: share of frames that are not there.
    """

    ragged: float = 0.0
    block: float = 0.0
    grow: int = 0
    opening: float = 0.0
    lost: float = 0.0
    flicker: float = 0.3
    band: float = -1.0
    band_height: float = 0.03
    missing: tuple[float, float] = (0.0, 0.0)
    missing_frames: tuple[int, int] = (0, 0)
    shadow: float = 0.0
    shadow_height: float = 0.03
    occluder: float = 0.0
    dropped: float = 0.0


def draw_faults(rng: np.random.Generator, *, frames: int, severity: float) -> Faults:
    """Draw the faults of one walk.

    Args:
        rng: source of every draw.
        frames: length of the walk.
        severity: 0 gives clean outlines, 1 the mixture that old background subtraction leaves, more is worse.
    """

    def happens(chance: float) -> bool:
        return bool(rng.random() < chance * severity)

    if not happens(0.85):
        return Faults(ragged=0.1 * float(severity > 0))
    missing, missing_frames = (0.0, 0.0), (0, 0)
    if happens(0.3):
        regions = [(0.0, 0.14), (0.0, 0.2), (0.9, 1.0), (0.75, 1.0), (0.1, 0.2), (0.3, 0.5)]
        missing = regions[rng.integers(len(regions))]
        length = int(rng.integers(2, max(3, frames // 3)))
        missing_frames = (int(rng.integers(0, max(1, frames - length))), length)
    return Faults(
        ragged=float(rng.uniform(0.05, 0.5)),
        block=float(rng.uniform(0.012, 0.03)),
        grow=int(rng.choice([-1, 0, 0, 0, 0, 1])),
        opening=float(rng.uniform(0.015, 0.03)) if rng.random() < 0.6 else 0.0,
        lost=float(rng.uniform(0.005, 0.1)) if happens(0.65) else 0.0,
        flicker=float(rng.uniform(0.05, 0.7)),
        band=float(rng.choice([0.13, 0.17, rng.uniform(0.2, 0.9)])) if happens(0.3) else -1.0,
        band_height=float(rng.uniform(0.01, 0.05)),
        missing=missing,
        missing_frames=missing_frames,
        shadow=float(rng.choice([-1, 1]) * rng.uniform(0.05, 0.3)) if happens(0.3) else 0.0,
        shadow_height=float(rng.uniform(0.015, 0.05)),
        occluder=float(rng.uniform(0.02, 0.12)) if happens(0.06) else 0.0,
        dropped=float(rng.uniform(0.03, 0.2)) if happens(0.25) else 0.0,
    )


def spoil(clean: Frames, faults: Faults, path: Floats, rng: np.random.Generator) -> Frames:
    """Segment a walk badly.

    Args:
        clean: true outlines, uint8 0/255 `[s, h, w]`, with `MARGIN` empty pixels on every side.
        faults: what goes wrong.
        path: how far the scene has moved past the camera's view of the person, in pixels, `[s]`.
        rng: source of every draw.

    Returns:
        uint8 0/255 `[s, h, w]`, one connected person a frame; a frame may be empty. Frames may be fewer.
    """
    frames, height, width = clean.shape
    top, bottom = _rows(clean)
    tall = (bottom - top).astype(np.float64)
    row = (np.arange(height)[None, :] - top[:, None]) / np.maximum(tall, 1.0)[:, None]  # [s, h]
    usual = float(np.median(tall))
    block = max(1, round(faults.block * usual))
    image = clean.copy()
    if faults.shadow:
        _cast_shadow(image, faults, top, bottom, rng)
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
    sheet = image.reshape(frames * height, width)
    if faults.ragged:
        blurred = cv2.blur(sheet, (5, 5)).reshape(image.shape).astype(np.int16)
        noise = rng.normal(0.0, 62.0 * faults.ragged, _coarse(image.shape, block))
        image = ((blurred + _upsampled(noise, block, image.shape)) > 127) & (blurred > 20)
        sheet = image.astype(np.uint8).reshape(frames * height, width) * np.uint8(255)
    opening = round(faults.opening * usual)
    if opening > 1:
        square = np.ones((opening, opening), np.uint8)
        sheet = cv2.morphologyEx(sheet, cv2.MORPH_CLOSE, square)
        sheet = cv2.morphologyEx(sheet, cv2.MORPH_OPEN, square)
    if faults.grow:
        change = cv2.dilate if faults.grow > 0 else cv2.erode
        sheet = change(sheet, np.ones((2, 2), np.uint8), iterations=abs(faults.grow))
    persons = _largest(sheet, frames, height)
    if faults.dropped:
        persons = persons[rng.random(frames) >= faults.dropped]
    return persons


def _rows(image: Frames) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each frame's person and the one after its last."""
    some = image.any(axis=2)
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
    """Where the person looks like what is behind: coarse textures on the person and in the scene together."""
    frames, height, width = image.shape
    texture = _smooth_noise(rng, 128, width, cell=(128 * rng.uniform(0.03, 0.1), width * 0.12))
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
    return inside & (likeness > np.quantile(likeness[inside][::7], 1.0 - faults.lost))


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
    top: NDArray[np.int64],
    bottom: NDArray[np.int64],
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
        image[frame, bottom[frame] - max(1, thick // 2) : bottom[frame], columns[0] : columns[-1]] = 255


def _hide(
    image: Frames, faults: Faults, tall: float, path: Floats, rng: np.random.Generator
) -> None:
    width = image.shape[2]
    at = width / 2 - (path - path[rng.integers(len(path))])
    post = np.abs(np.arange(width)[None, :] - at[:, None]) < faults.occluder * tall / 2
    image[np.broadcast_to(post[:, None, :], image.shape)] = 0


def _largest(sheet: Frames, frames: int, height: int) -> Frames:
    """The largest component of each frame after a small closing, as a careful user of a segmenter keeps it."""
    closed = cv2.morphologyEx(sheet, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    keep = np.zeros(count, dtype=bool)
    frame = stats[:, cv2.CC_STAT_TOP] // height
    area = stats[:, cv2.CC_STAT_AREA]
    if count > 1:
        order = np.lexsort((area[1:], frame[1:])) + 1
        last = np.concatenate([frame[order][1:] != frame[order][:-1], [True]])
        keep[order[last]] = True
    kept = np.where(keep[labels], sheet, 0).astype(np.uint8)
    return kept.reshape(frames, height, -1)

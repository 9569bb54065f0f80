"""A way of walking: drawn once for an identity, jittered for each walk.

An identity walks like a mixture of two recorded walkers, with its own amplitude about the mean of
every joint, its own posture, cadence, stride, and small differences between left and right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from training.rendering.cycles import SAMPLES, GaitCycle
from training.rendering.skeleton import BONE, BONES, Floats

_ROLL, _PITCH, _YAW = 0, 1, 2  # about the axes ahead, left, up: positive pitch leans ahead
_ARMS: Final = [BONE[f"{side}_arm"] for side in ("left", "right")]
_FOREARMS: Final = [BONE[f"{side}_forearm"] for side in ("left", "right")]
_SHOULDERS: Final = [BONE[f"{side}_shoulder"] for side in ("left", "right")]
_THIGHS: Final = [BONE[f"{side}_thigh"] for side in ("left", "right")]
_SHANKS: Final = [BONE[f"{side}_shank"] for side in ("left", "right")]
_FEET: Final = [BONE[f"{side}_foot"] for side in ("left", "right")]
_TRUNK: Final = [BONE[bone] for bone in ("waist", "spine", "chest")]
_HEAD: Final = [BONE[bone] for bone in ("neck", "head")]
_OUTWARD: Final = np.array([1.0, -1.0])  # roll that takes a left, a right limb away from the body


@dataclass(frozen=True)
class GaitStyle:
    """One identity's way of walking.

    Attributes:
        cycles: recorded cycles to draw a walk from.
        partner: cycles of a second walker, mixed in by `share` (0: not at all).
        share: share of the partner, 0 to 1.
        gains: amplitude about the mean of each joint angle, `[b, 3]`.
        offsets: radians added to each joint angle, `[b, 3]`.
        arm_delay: phase by which the arms follow the legs, in cycles.
        tempo: factor on the duration of a cycle.
        reach: factor on the length of a stride.
    """

    cycles: tuple[GaitCycle, ...]
    partner: tuple[GaitCycle, ...]
    share: float
    gains: Floats
    offsets: Floats
    arm_delay: float
    tempo: float
    reach: float


@dataclass(frozen=True)
class Arms:
    """What the arms do instead of swinging freely, as when something is carried.

    Attributes:
        swing: factor on the swing of the left and the right arm.
        lift: how far each upper arm is raised ahead, radians.
        bend: how far each elbow is bent further, radians.
    """

    swing: tuple[float, float] = (1.0, 1.0)
    lift: tuple[float, float] = (0.0, 0.0)
    bend: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Stride:
    """Poses of one walk.

    Attributes:
        pose: local rotation vectors `[s, b, 3]`, the hips' relative to the direction of travel.
        ahead: way covered in leg lengths, `[s]`.
        sway: sideways offset in leg lengths, `[s]`.
    """

    pose: Floats
    ahead: Floats
    sway: Floats


def draw_style(
    rng: np.random.Generator, walkers: Mapping[str, Sequence[GaitCycle]], *, spread: float
) -> tuple[GaitStyle, str]:
    """Draw an identity's way of walking.

    Args:
        rng: source of every draw.
        walkers: the recorded cycles of each walker that may be used.
        spread: width of the draws; 1 is about as wide as people are, 0 gives the recorded walker.

    Returns:
        The style and the walker who has the larger share in it.
    """
    names = sorted(walkers)
    main, other = (names[index] for index in rng.choice(len(names), size=2, replace=len(names) < 2))
    cycles, partner = list(walkers[main]), list(walkers[other])
    if rng.random() < 0.5:
        cycles = [cycle.mirrored() for cycle in cycles]
    if rng.random() < 0.5:
        partner = [cycle.mirrored() for cycle in partner]
    # A person keeps one or two habits of walking; a recorded subject may have dozens of takes.
    kept = rng.permutation(len(cycles))[:4]
    kept_partner = rng.permutation(len(partner))[:4]

    gains, offsets = np.ones((len(BONES), 3)), np.zeros((len(BONES), 3))

    def factor(scale: float, size: int | None = None) -> Floats:
        return np.asarray(np.exp(spread * rng.normal(0.0, scale, size)))

    def shift(scale: float, size: int | None = None) -> Floats:
        return np.asarray(spread * rng.normal(0.0, scale, size))

    def pair(bones: list[int], axis: int, both: Floats, each: Floats) -> None:
        offsets[bones, axis] += both + each

    # Legs
    # In the open, people stride further than on the marked paths of the recordings.
    gains[_THIGHS, _PITCH] *= 1.36**spread * factor(0.11) * factor(0.03, 2)
    gains[_SHANKS, _PITCH] *= factor(0.13) * factor(0.03, 2)
    gains[_FEET, _PITCH] *= factor(0.2) * factor(0.04, 2)
    pair(_THIGHS, _PITCH, shift(0.04), shift(0.015, 2))
    pair(_SHANKS, _PITCH, shift(0.06) - spread * 0.05, shift(0.015, 2))
    pair(_FEET, _PITCH, shift(0.04), shift(0.015, 2))
    pair(_THIGHS, _ROLL, shift(0.035) * _OUTWARD, shift(0.01, 2))  # step width
    pair(_THIGHS, _YAW, shift(0.07) * _OUTWARD, shift(0.03, 2))  # knees in or out
    pair(_FEET, _YAW, shift(0.12) * _OUTWARD, shift(0.05, 2))  # toes in or out
    # Trunk
    gains[BONE["hips"]] *= factor(0.3, 3)
    gains[_TRUNK] *= factor(0.3, 3)
    lean = shift(0.07)
    offsets[_TRUNK, _PITCH] += lean / 3.0
    offsets[BONE["hips"], _PITCH] += shift(0.04)
    offsets[_THIGHS, _PITCH] -= offsets[BONE["hips"], _PITCH]  # the pelvis tilts, the legs don't
    offsets[_TRUNK, _ROLL] += shift(0.012)
    offsets[_TRUNK, _YAW] += shift(0.015)
    # Head
    gains[_HEAD] *= factor(0.3, 3)
    offsets[_HEAD, _PITCH] += shift(0.08) - 0.4 * lean
    offsets[_HEAD, _ROLL] += shift(0.03)
    offsets[_HEAD, _YAW] += shift(0.05)
    # Arms
    # In the open, arms swing further too.
    gains[_ARMS, _PITCH] *= 1.7**spread * factor(0.3) * factor(0.2, 2)
    gains[_FOREARMS, _PITCH] *= 1.3**spread * factor(0.3) * factor(0.15, 2)
    pair(_ARMS, _PITCH, shift(0.1), shift(0.05, 2))
    # Sleeves keep arms off the body.
    pair(_ARMS, _ROLL, (shift(0.06) + 0.15 * spread) * _OUTWARD, shift(0.03, 2))
    pair(_ARMS, _YAW, shift(0.15) * _OUTWARD, shift(0.06, 2))
    pair(_FOREARMS, _PITCH, shift(0.18) + 0.2 * spread, shift(0.08, 2))
    pair(_SHOULDERS, _ROLL, shift(0.05) * _OUTWARD, shift(0.02, 2))
    pair(_SHOULDERS, _YAW, shift(0.1) * _OUTWARD, shift(0.02, 2))
    style = GaitStyle(
        cycles=tuple(cycles[index] for index in kept),
        partner=tuple(partner[index] for index in kept_partner),
        share=float(min(1.0, spread) * rng.uniform(0.0, 0.5)),
        gains=gains,
        offsets=offsets,
        arm_delay=float(shift(0.025)),
        tempo=float(factor(0.08)),
        reach=float(factor(0.08)),
    )
    return style, main


def jittered(style: GaitStyle, rng: np.random.Generator, *, amount: float) -> GaitStyle:
    """This person on another walk: pace, amplitudes and posture a little different.

    Args:
        style: the identity's own.
        rng: source of every draw.
        amount: width; 1 is about what one session shows, 2 what moods and shoes do.
    """
    pace = amount * rng.normal(0.0, 0.05)  # a faster walk is longer in stride and shorter in time
    gains = style.gains * np.exp(amount * rng.normal(0.0, 0.06, style.gains.shape) + 0.6 * pace)
    offsets = style.offsets + amount * rng.normal(0.0, 0.012, style.offsets.shape)
    offsets[_HEAD] += amount * rng.normal(0.0, 0.04, 3)
    offsets[_FOREARMS] += amount * rng.normal(0.0, 0.03, (2, 3))
    return replace(
        style,
        gains=gains,
        offsets=offsets,
        share=float(np.clip(style.share + amount * rng.normal(0.0, 0.04), 0.0, 1.0)),
        tempo=float(style.tempo * np.exp(-0.6 * pace + amount * rng.normal(0.0, 0.015))),
        reach=float(style.reach * np.exp(0.5 * pace)),
    )


def _within(swing: Floats) -> Floats:
    """Keep flexion about the mean `[s, b, 3]` to what walking people do, at most."""
    for bones, most in ((_ARMS, 0.8), (_FOREARMS, 0.55), (_THIGHS, 0.78), (_SHANKS, 0.85)):
        reach = np.abs(swing[:, bones, _PITCH]).max(axis=0)
        swing[:, bones, _PITCH] *= np.minimum(1.0, most / np.maximum(reach, 1e-9))
    return swing


def walk(
    style: GaitStyle,
    rng: np.random.Generator,
    *,
    frames: int,
    fps: float,
    arms: Arms,
) -> Stride:
    """Poses of `frames` frames at `fps`, starting at a random phase."""
    base = style.cycles[rng.integers(len(style.cycles))]
    partner = style.partner[rng.integers(len(style.partner))]
    share = style.share
    cycle = (1.0 - share) * base.pose + share * partner.pose
    sway = (1.0 - share) * base.sway + share * partner.sway
    seconds = ((1.0 - share) * base.seconds + share * partner.seconds) * style.tempo
    mean = cycle.mean(axis=0)
    swing = _within((cycle - mean) * style.gains)
    shaped = mean + style.offsets + swing
    for arm, bones in enumerate(zip(_ARMS, _FOREARMS, strict=True)):
        shaped[:, bones] = np.roll(shaped[:, bones], round(style.arm_delay * SAMPLES), axis=0)
        upper, fore = bones
        still = shaped[:, [upper, fore]].mean(axis=0)
        shaped[:, [upper, fore]] = still + arms.swing[arm] * (shaped[:, [upper, fore]] - still)
        shaped[:, upper, _PITCH] -= arms.lift[arm]
        shaped[:, fore, _PITCH] -= arms.bend[arm]
    elbow = shaped[:, _FOREARMS, _PITCH]
    shaped[:, _FOREARMS, _PITCH] = np.clip(elbow, -2.4, 0.0)  # an elbow bends one way
    knee = shaped[:, _SHANKS, _PITCH]
    shaped[:, _SHANKS, _PITCH] = np.maximum(knee, 0.02)
    # A standing foot lies on the ground whatever hip and knee do: keep the feet's pitch in the
    # world.
    legs = cycle[:, _THIGHS, _PITCH] + cycle[:, _SHANKS, _PITCH] + cycle[:, [BONE["hips"]], _PITCH]
    new_legs = (
        shaped[:, _THIGHS, _PITCH] + shaped[:, _SHANKS, _PITCH] + shaped[:, [BONE["hips"]], _PITCH]
    )
    shaped[:, _FEET, _PITCH] += legs - new_legs
    time = np.arange(frames) / fps
    wobble = 0.012 * np.sin(2 * np.pi * (time / rng.uniform(2.0, 4.0) + rng.random()))
    phase = rng.random() + time / seconds + wobble
    at = (phase % 1.0) * SAMPLES
    low = at.astype(int) % SAMPLES
    part = at - np.floor(at)
    high = (low + 1) % SAMPLES
    pose = shaped[low] * (1.0 - part)[:, None, None] + shaped[high] * part[:, None, None]
    hip = float(style.gains[_THIGHS, _PITCH].mean())
    stride = ((1.0 - share) * base.stride + share * partner.stride) * hip
    return Stride(
        pose=pose,
        ahead=(phase - phase[0]) * stride * style.reach,
        sway=sway[low] * (1.0 - part) + sway[high] * part,
    )

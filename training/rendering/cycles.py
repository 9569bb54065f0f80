"""Gait cycles: the periodic part of a recorded walk, freed of the recorded body.

A cycle starts when the left ankle passes the right one, and holds `SAMPLES` poses, the last
followed by the first. Looped, it gives any number of frames at any rate.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np

from training.rendering.recordings import Recording
from training.rendering.skeleton import (
    BONE,
    Floats,
    joint_positions,
    mirrored_order,
    to_local,
    to_vectors,
)

SAMPLES: Final = 64
_SECONDS: Final = (0.7, 2.2)
_SPEED: Final = (0.25, 2.1)  # metres a second: slower is standing, faster is running
_LARGEST_GAP: Final = 0.35  # radians of flexion between the ends of a cycle before they are joined
_LEGS: Final = [BONE[f"{side}_{bone}"] for side in ("left", "right") for bone in ("thigh", "shank")]


@dataclass(frozen=True)
class GaitCycle:
    """One closed cycle of one walker.

    Attributes:
        walker: who walked.
        pose: rotation vectors relative to the parent bone, the hips' relative to the direction of
            travel, `[SAMPLES, b, 3]`.
        sway: sideways path of the hips in leg lengths, `[SAMPLES]`.
        seconds: duration.
        stride: way covered in a cycle, in leg lengths.
    """

    walker: str
    pose: Floats
    sway: Floats
    seconds: float
    stride: float

    def mirrored(self) -> GaitCycle:
        """This walk with left and right exchanged, again starting with the left ankle."""
        pose = self.pose[:, mirrored_order()] * np.array([-1.0, 1.0, -1.0])
        half = SAMPLES // 2
        return GaitCycle(
            self.walker,
            np.roll(pose, -half, axis=0),
            np.roll(-self.sway, -half),
            self.seconds,
            self.stride,
        )


def find_cycles(recording: Recording) -> list[GaitCycle]:
    """The straight, steady gait cycles of a recording, in order."""
    start, end = _steady(recording)
    if end - start < recording.fps * _SECONDS[0]:
        return []
    root = recording.root[start:end]
    travel = root[-1] - root[0]
    heading = np.arctan2(travel[1], travel[0])
    cosine, sine = np.cos(heading), np.sin(heading)
    turn = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    world = turn @ recording.rotations[start:end]
    path = root @ turn.T
    joints = joint_positions(world, recording.joints)
    ahead = joints[:, BONE["left_foot"], 0] - joints[:, BONE["right_foot"], 0]
    ahead = _smooth(ahead, round(recording.fps * 0.1))
    passes = np.flatnonzero((ahead[:-1] < 0) & (ahead[1:] >= 0))
    leg = float(
        np.linalg.norm(recording.joints[BONE["left_shank"]] - recording.joints[BONE["left_thigh"]])
        + np.linalg.norm(recording.joints[BONE["left_foot"]] - recording.joints[BONE["left_shank"]])
    )
    local = to_vectors(to_local(world))
    cycles = []
    for first, last in itertools.pairwise(passes):
        seconds = (last - first) / recording.fps
        if not _SECONDS[0] <= seconds <= _SECONDS[1]:
            continue
        pose = _resample(local[first : last + 1])
        gap = pose[-1] - pose[0]
        if np.abs(gap[_LEGS, 1]).max() > _LARGEST_GAP or np.abs(pose).max() > 2.8:
            continue
        way = _resample(path[first : last + 1])
        sway = way[:, 1] / leg
        cycles.append(
            GaitCycle(
                recording.walker,
                _closed(pose),
                _closed(sway - sway.mean()),
                seconds,
                float(way[-1, 0] - way[0, 0]) / leg,
            )
        )
    return cycles


def _steady(recording: Recording) -> tuple[int, int]:
    """The longest run of frames with a walking speed and one direction."""
    fps = recording.fps
    window = round(fps * 0.6)
    if len(recording.root) < 2 * window:
        return 0, 0
    path = np.stack([_smooth(recording.root[:, axis], window) for axis in (0, 1)], axis=1)
    velocity = np.gradient(path, axis=0) * fps
    speed = np.linalg.norm(velocity, axis=1)
    heading = np.unwrap(np.arctan2(velocity[:, 1], velocity[:, 0]))
    # The first and last moments of a clip are starts, stops and smoothing's edges.
    margin = window // 3
    walking = (speed > _SPEED[0]) & (speed < _SPEED[1])
    best = (0, 0)
    start = margin
    while start < len(path) - margin:
        end = start
        while (
            end < len(path) - margin
            and walking[end]
            and abs(heading[end] - np.median(heading[start : end + 1 : 8])) < np.deg2rad(20)
        ):
            end += 1
        if end - start > best[1] - best[0]:
            best = (start, end)
        start = end + 1
    return best


def _smooth(signal: Floats, window: int) -> Floats:
    window += 1 - window % 2
    padded = np.pad(signal, window // 2, mode="edge")
    return np.convolve(padded, np.ones(window) / window, mode="valid")


def _resample(values: Floats) -> Floats:
    """`SAMPLES + 1` values at even times, ends included."""
    at = np.linspace(0.0, len(values) - 1.0, SAMPLES + 1)
    low = np.minimum(at.astype(int), len(values) - 2)
    share = (at - low).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(values[low] * (1.0 - share) + values[low + 1] * share)


def _closed(values: Floats) -> Floats:
    """Spread the gap between both ends over the whole cycle and drop the repeated end."""
    ramp = (np.arange(SAMPLES + 1) / SAMPLES - 0.5).reshape(-1, *[1] * (values.ndim - 1))
    joined: Floats = (values - (values[-1] - values[0]) * ramp)[:-1]
    return joined

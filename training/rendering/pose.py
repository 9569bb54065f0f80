"""Pose maps of rendered walkers: where the joints are is known, and drawn as the field draws them.

Source: SkeletonGait (arXiv 2311.13444) with OpenGait's settings: 17 joints as COCO numbers them,
the hips' middle in the middle of 128 x 128 pixels, the joints 85 rows tall, Gaussians of 8 pixels;
then each map is cut to its rows and made 64 x 64.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from training.rendering.body import COLUMNS, Body, Part
from training.rendering.skeleton import BONE, Floats

JOINTS: Final = 17
LEFT_HIP, RIGHT_HIP = 11, 12
LIMBS: Final = np.array(
    [
        (0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (5, 7), (7, 9), (0, 6), (6, 8), (8, 10), (5, 11),
        (11, 13), (13, 15), (6, 12), (12, 14), (14, 16), (11, 12),
    ]
)  # fmt: skip
_CANVAS: Final = 128
_TALL: Final = 85  # rows from the highest joint to the lowest
_SIGMA: Final = 8.0
_REACH: Final = 3 * _SIGMA
_SIDE: Final = 64
_FACE: Final = (  # nose, eyes, ears: shares of the head's depth, width and height
    (0.95, 0.5, 0.45), (0.85, 0.65, 0.55), (0.85, 0.35, 0.55), (0.45, 0.95, 0.5), (0.45, 0.05, 0.5),
)  # fmt: skip
_BELOW: Final = ("arm", "forearm", "hand", "thigh", "shank", "foot")  # bones that begin in a joint


def joints_of(body: Body) -> Part:
    """The joints, in COCO's order, as 17 points of the body that move with its bones."""
    head = body.vertices[body.weights[:, BONE["head"]] > 0.5]
    low, high = head.min(axis=0), head.max(axis=0)
    limbs = [BONE[f"{side}_{bone}"] for bone in _BELOW for side in ("left", "right")]
    bones = [BONE["head"]] * len(_FACE) + limbs
    return Part(
        vertices=np.concatenate([low + np.array(_FACE) * (high - low), body.joints[limbs]]),
        faces=np.zeros((0, 3), np.int64),
        weights=np.eye(COLUMNS)[bones],
    )


def pose_maps(joints: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Maps of the limbs and of the joints.

    Args:
        joints: `[s, 17, 2]`, right and down, in any unit.

    Returns:
        uint8 `[s, 2, 64, 64]`.
    """
    return np.stack([_of_frame(frame) for frame in _centred(np.asarray(joints, np.float64))])


def _centred(joints: Floats) -> Floats:
    rows = joints[..., 1]
    scale = _TALL / (rows.max(axis=1) - rows.min(axis=1))
    hips = joints[:, [LEFT_HIP, RIGHT_HIP]].mean(axis=1, keepdims=True)
    centred: Floats = (joints - hips) * scale[:, None, None] + _CANVAS // 2
    return centred


def _of_frame(joints: Floats) -> NDArray[np.uint8]:
    starts, ends = joints[LIMBS[:, 0]], joints[LIMBS[:, 1]]
    return np.stack([_aligned(_drawn(starts, ends)), _aligned(_drawn(joints, joints))])


def _drawn(starts: Floats, ends: Floats) -> NDArray[np.uint8]:
    """The highest of the Gaussians about segments (x, y) `[m, 2]`, each within 3 of its widths."""
    x, y = np.meshgrid(np.arange(_CANVAS), np.arange(_CANVAS))
    pixels = np.stack([x, y], axis=-1)[None]  # [1, 128, 128, 2]
    start, along = starts[:, None, None], (ends - starts)[:, None, None]
    length = (along**2).sum(axis=-1)
    points = length < 1
    share = ((pixels - start) * along).sum(axis=-1) / np.where(points, 1.0, length)
    nearest = start + np.where(points, 0.0, share.clip(0, 1))[..., None] * along
    distance = ((pixels - nearest) ** 2).sum(axis=-1)
    ends = np.where(points[:, 0], starts, ends)
    low = np.trunc(np.minimum(starts, ends) - _REACH)[:, None, None]
    high = np.trunc(np.maximum(starts, ends) + _REACH)[:, None, None]
    near = ((pixels >= low) & (pixels <= high)).all(axis=-1)
    heat = np.where(near, np.exp(-distance / (2 * _SIGMA**2)), 0.0).max(axis=0)
    return np.asarray(np.minimum(heat * 256, 255).astype(np.uint8))


def _aligned(heat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut to the rows that hold anything, as many columns about the middle, and 64 x 64."""
    rows = np.flatnonzero(heat.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    half = (bottom - top) // 2
    person = heat[top:bottom, _CANVAS // 2 - half : _CANVAS // 2 + half + 1] / 255
    resized = cv2.resize(person, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray((resized * 255).astype(np.uint8))

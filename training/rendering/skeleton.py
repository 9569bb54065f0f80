"""The one skeleton that recordings, gait model and bodies share.

Axes everywhere in the renderer: x is where the walker goes, y is the walker's left, z is up; metres
    and radians.

A pose is one world rotation a bone, measured from the *reference stance*: standing upright, legs
straight, arms hanging, feet forward. In the reference stance every rotation is the identity,
whatever recording or body it belongs to, so poses need no knowledge of whose bones they move.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TREE: Final[dict[str, str | None]] = {
    "hips": None,
    "waist": "hips",
    "spine": "waist",
    "chest": "spine",
    "neck": "chest",
    "head": "neck",
    "left_shoulder": "chest",
    "left_arm": "left_shoulder",
    "left_forearm": "left_arm",
    "left_hand": "left_forearm",
    "right_shoulder": "chest",
    "right_arm": "right_shoulder",
    "right_forearm": "right_arm",
    "right_hand": "right_forearm",
    "left_thigh": "hips",
    "left_shank": "left_thigh",
    "left_foot": "left_shank",
    "left_toes": "left_foot",
    "right_thigh": "hips",
    "right_shank": "right_thigh",
    "right_foot": "right_shank",
    "right_toes": "right_foot",
}
BONES: Final[tuple[str, ...]] = tuple(_TREE)
BONE: Final[dict[str, int]] = {name: index for index, name in enumerate(BONES)}
PARENTS: Final[tuple[int, ...]] = tuple(
    -1 if parent is None else BONE[parent] for parent in _TREE.values()
)

_LIMB_DIRECTIONS: Final[dict[str, tuple[float, float, float]]] = {
    "arm": (0.0, 0.0, -1.0),
    "forearm": (0.0, 0.0, -1.0),
    "hand": (0.0, 0.0, -1.0),
    "thigh": (0.0, 0.0, -1.0),
    "shank": (0.0, 0.0, -1.0),
}
LIMBS: Final[dict[str, Floats]] = {
    f"{side}_{limb}": np.array(direction)
    for side in ("left", "right")
    for limb, direction in _LIMB_DIRECTIONS.items()
}
"""Bones whose direction differs between rest poses, and where they point in the reference stance.

Feet are none of them: in every rest pose they stand flat on the ground, whatever way their bone
    runs.
"""


def mirrored_order() -> list[int]:
    """Bone indices with left and right exchanged."""
    swap = {"left": "right", "right": "left"}
    order = []
    for name in BONES:
        side, _, rest = name.partition("_")
        order.append(BONE[f"{swap[side]}_{rest}"] if side in swap else BONE[name])
    return order


def shortest_rotation(source: Floats, target: Floats) -> Floats:
    """The rotation by the smallest angle from `source` `[3]` to `target` `[3]`, `[3, 3]`."""
    a = source / np.linalg.norm(source)
    b = target / np.linalg.norm(target)
    axis = np.cross(a, b)
    cosine = float(a @ b)
    if cosine < -0.9999:
        raise ValueError("opposite directions have no shortest rotation")
    cross = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    return np.asarray(np.eye(3) + cross + cross @ cross / (1.0 + cosine))


def to_matrices(rotation_vectors: Floats) -> Floats:
    """Rotation vectors `[..., 3]` (axis times angle) to matrices `[..., 3, 3]` (Rodrigues)."""
    angle = np.linalg.norm(rotation_vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(rotation_vectors, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    small = angle < 1e-6
    safe = np.where(small, 1.0, angle)
    first = np.where(small, 1.0, np.sin(safe) / safe)
    second = np.where(small, 0.5, (1.0 - np.cos(safe)) / safe**2)
    return np.asarray(np.eye(3) + first * cross + second * (cross @ cross))


def from_angles(axes: str, degrees: Floats) -> Floats:
    """Euler angles to matrices.

    Args:
        axes: in the order of the product, outermost first: `"zyx"` gives `Z @ Y @ X`.
        degrees: an angle an axis, `[..., len(axes)]`.

    Returns:
        `[..., 3, 3]`.
    """
    product = np.eye(3)
    for column, axis in enumerate(axes):
        turn = np.deg2rad(degrees[..., column, None]) * np.eye(3)["xyz".index(axis)]
        product = product @ to_matrices(turn)
    return product


def to_vectors(matrices: Floats) -> Floats:
    """Matrices `[..., 3, 3]` to rotation vectors `[..., 3]`, angles up to pi."""
    trace = np.trace(matrices, axis1=-2, axis2=-1)
    angle = np.arccos(np.clip((trace - 1.0) / 2.0, -1.0, 1.0))[..., None]
    skew = np.stack(
        [
            matrices[..., 2, 1] - matrices[..., 1, 2],
            matrices[..., 0, 2] - matrices[..., 2, 0],
            matrices[..., 1, 0] - matrices[..., 0, 1],
        ],
        axis=-1,
    )
    sine = np.sin(angle)
    return skew * np.where(sine < 1e-7, 0.5, angle / np.where(sine < 1e-7, 1.0, 2.0 * sine))


def to_local(world: Floats) -> Floats:
    """World rotations `[..., b, 3, 3]` to rotations relative to each bone's parent."""
    local = world.copy()
    for bone, parent in enumerate(PARENTS):
        if parent >= 0:
            local[..., bone, :, :] = (
                np.swapaxes(world[..., parent, :, :], -1, -2) @ world[..., bone, :, :]
            )
    return local


def to_world(local: Floats) -> Floats:
    """Rotations relative to the parent `[..., b, 3, 3]` to world rotations."""
    world = local.copy()
    for bone, parent in enumerate(PARENTS):
        if parent >= 0:
            world[..., bone, :, :] = world[..., parent, :, :] @ local[..., bone, :, :]
    return world


def joint_positions(world: Floats, joints: Floats) -> Floats:
    """Where the joints are in a pose, the hips' joint at the origin.

    Args:
        world: world rotations `[s, b, 3, 3]`.
        joints: joints (the heads of the bones) in the reference stance `[b, 3]`.

    Returns:
        `[s, b, 3]`.
    """
    positions = np.zeros((*world.shape[:-2], 3))
    for bone, parent in enumerate(PARENTS):
        if parent >= 0:
            positions[:, bone] = positions[:, parent] + world[:, parent] @ (
                joints[bone] - joints[parent]
            )
    return positions

"""Parametric bodies (anny) cut down to what a silhouette needs, and skinning of whole walks.

The template mesh (13,718 vertices) is reduced to some hundred of its own vertices by clustering, so
shapes still come from anny exactly. A body is posed once into the reference stance (arms hanging),
where lengths and girths are scaled a bone at a time and clothes are put on; a walk is then one
matrix product.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.rendering.skeleton import (
    BONE,
    BONES,
    LIMBS,
    PARENTS,
    Floats,
    joint_positions,
    shortest_rotation,
    to_matrices,
    to_world,
)

_CMU_BONES: Final[dict[str, str]] = {
    "Hips": "hips",
    "LHipJoint": "hips",
    "RHipJoint": "hips",
    "LowerBack": "waist",
    "Spine": "spine",
    "Spine1": "chest",
    "Neck": "neck",
    "Neck1": "neck",
    "Head": "head",
    **{
        f"{side}{theirs}": f"{side.lower()}_{ours}"
        for side in ("Left", "Right")
        for theirs, ours in {
            "Shoulder": "shoulder",
            "Arm": "arm",
            "ForeArm": "forearm",
            "Hand": "hand",
            "FingerBase": "hand",
            "HandFinger1": "hand",
            "UpLeg": "thigh",
            "Leg": "shank",
            "Foot": "foot",
            "ToeBase": "toes",
        }.items()
    },
    "LThumb": "left_hand",
    "RThumb": "right_hand",
}
_HEADS: Final[dict[str, str]] = {
    ours: theirs
    for theirs, ours in reversed(_CMU_BONES.items())
    if theirs not in ("LThumb", "RThumb")
}
_TIPS: Final[dict[str, str]] = {
    "arm": "ForeArm",
    "forearm": "Hand",
    "hand": "FingerBase",
    "thigh": "Leg",
    "shank": "Foot",
}
_FEET: Final = [BONE[f"{side}_{bone}"] for side in ("left", "right") for bone in ("foot", "toes")]
# anny: x to the left, y to the back, z up
_AXES: Final = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_CELL: Final[dict[str, float]] = {
    "head": 0.05,
    "neck": 0.05,
    "hand": 0.035,
    "forearm": 0.05,
    "foot": 0.05,
}
_CELL_ELSEWHERE: Final = 0.07
CARRIED: Final[dict[str, int]] = {"left": len(BONES), "right": len(BONES) + 1}
"""Columns of `weights` for what hangs from a hand: it follows the hand and stays upright."""
COLUMNS: Final = len(BONES) + len(CARRIED)
_BELOW_WRIST: Final = 0.08


@dataclass(frozen=True)
class Phenotype:
    """What anny builds a body from, and our own factors on its proportions.

    anny's are 0 to 1; an `age` of 0.67 is grown up, 1 is old.

    Attributes:
        lengths: factor on the length of each bone, `[b]`.
        girths: factor on the width and depth of each bone, `[b, 2]` (depth, width).
    """

    gender: float
    age: float
    muscle: float
    weight: float
    height: float
    proportions: float
    lengths: Floats
    girths: Floats


@dataclass(frozen=True)
class Body:
    """A mesh in the reference stance, hips at the origin.

    Attributes:
        vertices: `[v, 3]`.
        faces: counter-clockwise seen from outside, `[f, 3]`.
        weights: skinning weights, rows sum to one, `[v, b + 2]` (the last two: `CARRIED`).
        joints: `[b, 3]`.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    weights: Floats
    joints: Floats

    @property
    def leg_length(self) -> float:
        """Metres from the hip joint to the ankle."""
        return float(self.joints[BONE["left_thigh"], 2] - self.joints[BONE["left_foot"], 2])

    @functools.cached_property
    def normals(self) -> Floats:
        """Outward unit normals of the vertices, `[v, 3]`."""
        corners = self.vertices[self.faces]
        face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals = np.zeros_like(self.vertices)
        for corner in range(3):
            np.add.at(normals, self.faces[:, corner], face_normals)
        unit: Floats = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return unit

    def with_parts(self, parts: list[Part]) -> Body:
        """The body with further pieces attached."""
        vertices, faces, weights = [self.vertices], [self.faces], [self.weights]
        count = len(self.vertices)
        for part in parts:
            vertices.append(part.vertices)
            faces.append(part.faces + count)
            weights.append(part.weights)
            count += len(part.vertices)
        return Body(
            np.concatenate(vertices), np.concatenate(faces), np.concatenate(weights), self.joints
        )


@dataclass(frozen=True)
class Part:
    """A piece of geometry in the reference stance that moves with bones: fields as in `Body`."""

    vertices: Floats
    faces: NDArray[np.int64]
    weights: Floats


class BodyModel:
    """anny, loaded once, giving decimated bodies in the reference stance.

    Raises:
        ValueError: anny is not installed.
    """

    def __init__(self) -> None:
        try:
            import torch
            import warp
        except ImportError as error:
            raise ValueError(
                "bodies need the extra 'render': pip install 'gaitid[render]'"
            ) from error

        # anny imports warp, whose banner would go to stdout, among the JSON lines.
        warp.config.quiet = True  # type: ignore[attr-defined]
        import anny

        self._torch = torch
        self._model = anny.Anny(rig="cmu_mb", skinning_method="lbs").to(dtype=torch.float64)
        labels = list(self._model.bone_labels)
        rest = self._rest(gender=0.5, age=0.7, muscle=0.5, weight=0.5, height=0.5, proportions=0.5)
        indices = self._model.vertex_bone_indices.numpy().astype(np.int64)
        values = self._model.vertex_bone_weights.numpy().astype(np.float64)
        ours = np.array([BONE[_CMU_BONES[label]] for label in labels])
        weights = np.zeros((len(rest[0]), len(BONES)))
        for column in range(indices.shape[1]):
            np.add.at(
                weights, (np.arange(len(weights)), ours[indices[:, column]]), values[:, column]
            )
        faces = self._model.faces.numpy().astype(np.int64)
        kept, self.faces = _decimate(rest[0], faces, weights)
        self._kept = kept
        self.weights = weights[kept]
        self._heads = np.array([labels.index(_HEADS[bone]) for bone in BONES])
        self._tips = {
            limb: labels.index(f"{limb.partition('_')[0].title()}{_TIPS[limb.partition('_')[2]]}")
            for limb in LIMBS
        }

    def _rest(self, **phenotype: float) -> tuple[Floats, Floats]:
        with self._torch.no_grad():
            output = self._model(
                pose_parameters=None,
                phenotype_kwargs={
                    name: self._torch.tensor([value], dtype=self._torch.float64)
                    for name, value in phenotype.items()
                },
            )
        # torch's products end in other digits on other processors: micrometres are alike on all.
        vertices, heads = (
            np.round(output[name][0].numpy(), 6) @ _AXES.T
            for name in ("rest_vertices", "rest_bone_heads")
        )
        return vertices, heads

    def body(self, phenotype: Phenotype) -> Body:
        """A naked, shod-less body with closed hands in the reference stance."""
        all_vertices, all_heads = self._rest(
            gender=phenotype.gender,
            age=phenotype.age,
            muscle=phenotype.muscle,
            weight=phenotype.weight,
            height=phenotype.height,
            proportions=phenotype.proportions,
        )
        vertices, joints = all_vertices[self._kept], all_heads[self._heads]
        world = np.tile(np.eye(3), (len(BONES), 1, 1))
        for limb, direction in LIMBS.items():
            run = all_heads[self._tips[limb]] - joints[BONE[limb]]
            world[BONE[limb]] = shortest_rotation(run, direction)
        stance = _skin(vertices, self.weights, joints, world[None], np.ones((len(BONES), 3)))[0]
        stance_joints = joint_positions(world[None], joints)[0]
        scales = np.column_stack([phenotype.girths, phenotype.lengths])
        # A foot points ahead: its length is along x.
        for side in ("left", "right"):
            for bone in (BONE[f"{side}_foot"], BONE[f"{side}_toes"]):
                scales[bone] = scales[bone][[2, 1, 0]]
        identity = np.tile(np.eye(3), (1, len(BONES), 1, 1))
        scaled_joints = _scaled_joints(stance_joints, scales)
        shaped = _skin(stance, self.weights, stance_joints, identity, scales)[0]
        weights = np.pad(self.weights, ((0, 0), (0, len(CARRIED))))
        return Body(_closed_hands(shaped, self.weights), self.faces, weights, scaled_joints)


def _scaled_joints(joints: Floats, scales: Floats) -> Floats:

    scaled = np.zeros_like(joints)
    for bone, parent in enumerate(PARENTS):
        if parent >= 0:
            scaled[bone] = scaled[parent] + (joints[bone] - joints[parent]) * scales[parent]
    return scaled


def _skin(
    vertices: Floats, weights: Floats, joints: Floats, world: Floats, scales: Floats
) -> Floats:
    """Linear blend skinning with a scale a bone, `[s, v, 3]`; the hips go to the origin."""
    centred = joints - joints[0]
    posed = np.zeros((len(world), len(joints), 3))

    for bone, parent in enumerate(PARENTS):
        if parent >= 0:
            step = (centred[bone] - centred[parent]) * scales[parent]
            posed[:, bone] = posed[:, parent] + world[:, parent] @ step
    return _blend(vertices - joints[0], weights, centred, world * scales[None, :, None, :], posed)


def _blend(
    vertices: Floats, weights: Floats, joints: Floats, linear: Floats, positions: Floats
) -> Floats:
    offset = positions - (linear @ joints[None, :, :, None])[..., 0]
    transforms = np.concatenate([linear, offset[..., None]], axis=-1)
    frames = len(transforms)
    blended = weights @ transforms.transpose(1, 0, 2, 3).reshape(len(joints), -1)
    blended = blended.reshape(len(vertices), frames, 3, 4)
    homogeneous = np.concatenate([vertices, np.ones((len(vertices), 1))], axis=1)
    result = np.einsum("vsij,vj->svi", blended, homogeneous)
    return np.asarray(result)


def posed(body: Body, pose: Floats) -> NDArray[np.float32]:
    """Vertices of a walk.

    Args:
        body: in the reference stance.
        pose: local rotation vectors `[s, b, 3]`.

    Returns:
        `[s, v, 3]` float32, standing on z = 0 in every frame, hips over the origin.
    """
    world = to_world(to_matrices(pose))
    positions = joint_positions(world, body.joints)
    hands = [BONE["left_hand"], BONE["right_hand"]]
    below = np.array([0.0, 0.0, -_BELOW_WRIST])
    joints = np.concatenate([body.joints, body.joints[hands] + below])
    positions = np.concatenate([positions, positions[:, hands] + world[:, hands] @ below], axis=1)
    upright = np.broadcast_to(np.eye(3), (len(world), len(hands), 3, 3))
    world = np.concatenate([world, upright], axis=1)
    offset = positions - (world @ joints[None, :, :, None])[..., 0]
    transforms = np.concatenate([world, offset[..., None]], axis=-1).astype(np.float32)
    frames = len(transforms)
    blended = body.weights.astype(np.float32) @ np.ascontiguousarray(
        transforms.transpose(1, 0, 3, 2)
    ).reshape(COLUMNS, -1)
    blended = blended.reshape(-1, frames, 4, 3)
    at = body.vertices.astype(np.float32)[:, None, :, None]
    vertices = np.ascontiguousarray(
        (blended[:, :, 3] + (blended[:, :, :3] * at).sum(axis=2)).transpose(1, 0, 2)
    )
    soles = body.weights[:, _FEET].sum(axis=1) > 0.5
    vertices[..., 2] -= vertices[:, soles, 2].min(axis=1, keepdims=True)
    np.maximum(vertices[..., 2], 0.0, out=vertices[..., 2])  # nothing hangs through the ground
    return vertices


def _decimate(
    vertices: Floats, faces: NDArray[np.int64], weights: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cluster vertices of the same bone in a grid and keep the one nearest each cluster's centre.

    Returns:
        Indices of the vertices kept `[v]`, faces over them `[f, 3]`.
    """
    bone = weights.argmax(axis=1)
    cell = np.array([_CELL.get(BONES[b].rpartition("_")[2], _CELL_ELSEWHERE) for b in bone])
    keys = np.column_stack([bone, np.floor(vertices / cell[:, None]).astype(np.int64)])
    # Faces can refer to parts of the mesh that no skin face uses (helpers): only used vertices
    # count.
    used = np.zeros(len(vertices), dtype=bool)
    used[faces.ravel()] = True
    _, cluster = np.unique(keys, axis=0, return_inverse=True)
    cluster = cluster.ravel()
    count = cluster.max() + 1
    size = np.bincount(cluster[used], minlength=count)
    centres = np.stack(
        [
            np.bincount(cluster[used], vertices[used, axis], minlength=count) / np.maximum(size, 1)
            for axis in range(3)
        ],
        axis=1,
    )
    distance = np.linalg.norm(vertices - centres[cluster], axis=1)
    distance[~used] = np.inf
    order = np.lexsort((distance, cluster))
    first = np.concatenate([[True], np.diff(cluster[order]) > 0])
    representative = order[first]
    collapsed = cluster[faces]
    distinct = (
        (collapsed[:, 0] != collapsed[:, 1])
        & (collapsed[:, 1] != collapsed[:, 2])
        & (collapsed[:, 2] != collapsed[:, 0])
    )
    collapsed = collapsed[distinct]
    _, unique = np.unique(np.sort(collapsed, axis=1), axis=0, return_index=True)
    collapsed = collapsed[np.sort(unique)]
    kept, renumbered = np.unique(collapsed, return_inverse=True)
    return representative[kept], renumbered.reshape(-1, 3).astype(np.int64)


def _closed_hands(vertices: Floats, weights: Floats) -> Floats:
    """Shorten the fingers into loose fists: nobody walks with fingers spread."""
    closed = vertices.copy()
    for side in ("left", "right"):
        hand = weights[:, BONE[f"{side}_hand"]]
        core = hand > 0.9
        wrist = vertices[core, 2].max()
        middle = vertices[core, :2].mean(axis=0)
        share = hand[:, None]
        target = vertices.copy()
        target[:, 2] = wrist + (vertices[:, 2] - wrist) * 0.6
        target[:, :2] = middle + (vertices[:, :2] - middle) * np.array([0.75, 0.85])
        closed += share * (target - vertices)
    return closed


def draw_phenotype(rng: np.random.Generator, *, spread: float) -> Phenotype:
    """Draw a grown-up's body; `spread` 1 is as wide as a crowd, larger is wider."""

    def value(mean: float, scale: float) -> float:
        return float(np.clip(mean + spread * rng.normal(0.0, scale), 0.0, 1.0))

    female = rng.random() < 0.5
    lengths, girths = np.ones(len(BONES)), np.ones((len(BONES), 2))

    def bones(*names: str) -> list[int]:
        return [index for index, bone in enumerate(BONES) if bone.rpartition("_")[2] in names]

    def factor(scale: float) -> float:
        return float(np.exp(spread * rng.normal(0.0, scale)))

    legs = factor(0.035)
    lengths[bones("thigh")] *= legs * factor(0.02)
    lengths[bones("shank")] *= legs * factor(0.02)
    lengths[bones("waist", "spine", "chest")] *= factor(0.04)
    lengths[bones("neck")] *= factor(0.06)
    arms = factor(0.035)
    lengths[bones("arm")] *= arms * factor(0.02)
    lengths[bones("forearm", "hand")] *= arms * factor(0.02)
    head = factor(0.04)
    lengths[bones("head")] *= head
    girths[bones("head")] *= np.array([head * factor(0.03), head * factor(0.03)])
    girths[bones("neck")] *= factor(0.08)
    trunk = factor(0.06)
    girths[bones("waist", "spine")] *= np.array([trunk * factor(0.08), trunk * factor(0.04)])
    girths[bones("chest")] *= np.array([trunk * factor(0.06), trunk * factor(0.05)])
    girths[bones("shoulder"), 1] *= factor(0.07)
    girths[bones("hips")] *= np.array([factor(0.07), factor(0.06)])
    girths[bones("thigh")] *= factor(0.05)
    girths[bones("shank")] *= factor(0.05)
    girths[bones("arm", "forearm")] *= factor(0.08)
    girths[bones("foot", "toes")] *= factor(0.06)
    return Phenotype(
        gender=value(0.88 if female else 0.12, 0.12),
        age=float(rng.uniform(0.6, 1.0)),
        muscle=value(0.5, 0.2),
        weight=value(0.5, 0.22),
        height=value(0.42 if female else 0.5, 0.14),
        proportions=value(0.5, 0.25),
        lengths=lengths,
        girths=girths,
    )

"""Pose maps: drawn as the field draws them, where a rendered walker's joints are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tests.training.rendering.recorded import write_walkers
from training.data import Pack
from training.rendering.body import BodyModel
from training.rendering.command import render
from training.rendering.pose import LIMBS, pose_maps

RECIPE = """
seed = 3
split = "train"
collections = ["rueangsirarak"]
identities = 1
severity = 0.5
[walks]
normal = 1
bag = 0
coat = 0
frames = { low = 16, high = 18 }
"""


def skeleton(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform([0, 0], [60, 100], (17, 2))


def by_hand(joints: np.ndarray) -> np.ndarray:
    """One frame's maps by loops over pixels, limbs and joints."""
    rows = joints[:, 1]
    points = (joints - (joints[11] + joints[12]) / 2) * (85 / (rows.max() - rows.min())) + 64
    maps = []
    for segments in ([(points[a], points[b]) for a, b in LIMBS], [(p, p) for p in points]):
        heat = np.zeros((128, 128))
        for start, end in segments:
            low = np.trunc(np.minimum(start, end) - 24).astype(int)
            high = np.trunc(np.maximum(start, end) + 24).astype(int)
            for y in range(max(low[1], 0), min(high[1] + 1, 128)):
                for x in range(max(low[0], 0), min(high[0] + 1, 128)):
                    at, run = np.array([x, y]), end - start
                    share = np.clip((at - start) @ run / max(run @ run, 1e-9), 0, 1)
                    value = np.exp(-(((at - start - share * run) ** 2).sum()) / 128)
                    heat[y, x] = max(heat[y, x], value)
        grey = np.minimum(heat * 256, 255).astype(np.uint8)
        (held,) = np.nonzero(grey.sum(axis=1))
        half = (held[-1] - held[0] + 1) // 2
        cut = grey[held[0] : held[-1] + 1, 64 - half : 64 + half + 1] / 255
        maps.append(
            (cv2.resize(cut, (64, 64), interpolation=cv2.INTER_AREA) * 255).astype(np.uint8)
        )
    return np.stack(maps)


def test_maps_are_what_loops_over_pixels_draw() -> None:
    drawn = pose_maps(skeleton(0)[None])
    assert drawn.shape == (1, 2, 64, 64)
    assert abs(drawn[0].astype(int) - by_hand(skeleton(0))).max() <= 1


def test_maps_do_not_depend_on_where_or_how_large_somebody_is() -> None:
    found = pose_maps(np.stack([skeleton(1), skeleton(1) * 7 - 300]))
    assert abs(found[0].astype(int) - found[1]).max() <= 1


def test_rendered_walks_have_maps_of_their_own_frames(tmp_path: Path, bodies: BodyModel) -> None:
    del bodies
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    mocap = write_walkers(tmp_path / "mocap", 8)
    plain = render(recipe, tmp_path / "plain.pack", workers=1, mocap=mocap)
    posed = render(recipe, tmp_path / "posed.pack", workers=1, mocap=mocap, pose_maps=True)
    assert not plain.has_pose
    assert posed.has_pose
    assert lies_on(posed)
    assert plain.lengths.tolist() == posed.lengths.tolist()
    differing = (plain.silhouettes(0) != posed.silhouettes(0)).mean()
    assert differing < 1e-3, "drawing joints moved somebody"


def lies_on(pack: Pack) -> bool:
    """Whether limbs lie on the person, but for the room that the field's maps leave about them."""
    near = np.stack([cv2.dilate(one, np.ones((13, 13))) for one in pack.silhouettes(0)]) > 0
    bright = pack.pose_maps(0)[:, 0] > 220
    assert bright.any(axis=(1, 2)).all()
    return bool((near & bright).sum() > 0.95 * bright.sum())

from dataclasses import replace

import numpy as np
import pytest

from training.rendering.body import Body, BodyModel, Phenotype, draw_phenotype, posed
from training.rendering.clothing import (
    Carried,
    Outfit,
    draw_carried,
    draw_coat,
    draw_outfit,
    dressed,
)
from training.rendering.raster import fill
from training.rendering.skeleton import BONE, BONES

STANDING = np.zeros((1, len(BONES), 3))


def plain(**changes: float) -> Phenotype:
    shape = Phenotype(
        gender=0.5,
        age=0.7,
        muscle=0.5,
        weight=0.5,
        height=0.5,
        proportions=0.5,
        lengths=np.ones(len(BONES)),
        girths=np.ones((len(BONES), 2)),
    )
    return replace(shape, **changes)  # type: ignore[arg-type]


def outline(body: Body, *, side: bool = False) -> np.ndarray:
    vertices = posed(body, STANDING)
    across = vertices[..., 0] if side else vertices[..., 1]
    # Seen from ahead the walker's left is on the right; from the right side, ahead is on the right.
    points = np.stack([across * 60 + 64, 126 - vertices[..., 2] * 60], axis=-1)
    seen = fill(points.astype(np.float32), body.faces, height=128, width=128)
    return np.asarray(seen[0] > 0)


def test_a_body_stands_upright_with_hanging_arms_on_the_ground(bodies: BodyModel) -> None:
    body = bodies.body(plain())
    vertices = posed(body, STANDING)[0]
    assert vertices[:, 2].min() == 0
    assert 1.4 < vertices[:, 2].max() < 2.1
    assert np.ptp(vertices[:, 1]) < 0.8  # no arm is spread
    hand, forearm = body.joints[BONE["left_hand"]], body.joints[BONE["left_forearm"]]
    assert np.abs((hand - forearm)[:2]).max() < 0.01
    assert body.joints[BONE["left_thigh"], 1] > 0 > body.joints[BONE["right_thigh"], 1]


def test_the_decimated_mesh_is_small_and_has_the_outline_of_one_person(bodies: BodyModel) -> None:
    body = bodies.body(plain())
    assert len(body.vertices) < 1200
    assert np.allclose(body.weights.sum(axis=1), 1, atol=1e-4)
    seen = outline(body)
    rows = np.flatnonzero(seen.any(axis=1))
    assert np.all(np.diff(rows) == 1)
    assert (seen ^ seen[:, ::-1]).sum() < 0.1 * seen.sum()  # left and right alike


def test_leg_length_and_girth_change_what_they_name(bodies: BodyModel) -> None:
    lengths, girths = np.ones(len(BONES)), np.ones((len(BONES), 2))
    for side in ("left", "right"):
        lengths[BONE[f"{side}_thigh"]] = lengths[BONE[f"{side}_shank"]] = 1.1
    girths[BONE["waist"]] = girths[BONE["spine"]] = 1.5
    usual, long, wide = (
        bodies.body(shape)
        for shape in (plain(), plain(lengths=lengths), plain(girths=girths))  # type: ignore[arg-type]
    )
    assert long.leg_length == pytest.approx(1.1 * usual.leg_length, rel=1e-3)
    trunk = usual.weights[:, [BONE["waist"], BONE["spine"]]].sum(axis=1) > 0.9
    ratio = np.ptp(wide.vertices[trunk, 0]) / np.ptp(usual.vertices[trunk, 0])
    assert 1.2 < ratio < 1.6
    assert wide.leg_length == pytest.approx(usual.leg_length)


def test_skinning_moves_a_bone_and_what_hangs_from_it(bodies: BodyModel) -> None:
    body = dressed(bodies.body(plain()), Outfit(), None)
    raised = STANDING.copy()
    raised[0, BONE["left_thigh"], 1] = -np.pi / 2  # flexed until level
    at_rest, moved = posed(body, STANDING)[0], posed(body, raised)[0]
    shank = body.weights[:, BONE["left_shank"]] > 0.95
    assert moved[shank, 0].mean() > at_rest[shank, 0].mean() + 0.3
    right = body.weights[:, BONE["right_shank"]] > 0.95
    assert np.allclose(moved[right], at_rest[right], atol=1e-4)


@pytest.mark.parametrize("kind", ["backpack", "shoulder bag", "hand bag", "suitcase", "box"])
def test_a_bag_changes_the_outline_on_its_side(bodies: BodyModel, kind: str) -> None:
    body = bodies.body(plain())
    bare = dressed(body, Outfit(), None)
    loaded = dressed(body, Outfit(), Carried(kind, "left", 1.2, 1.2))  # type: ignore[arg-type]
    added = (outline(loaded, side=True) & ~outline(bare, side=True)).sum() + (
        outline(loaded) & ~outline(bare)
    ).sum()
    assert added > 60
    if kind in ("shoulder bag", "hand bag"):
        extra = outline(loaded) & ~outline(bare)
        assert extra[:, 64:].sum() > 5 * extra[:, :64].sum()


def test_a_hand_bag_hangs_upright_whatever_the_arm_does(bodies: BodyModel) -> None:
    body = dressed(bodies.body(plain()), Outfit(), Carried("hand bag", "left", 1.0, 1.0))
    swung = STANDING.copy()
    swung[0, BONE["left_arm"], 1] = -0.6
    bag = body.weights[:, -2] > 0.5
    at_rest, moved = posed(body, STANDING)[0, bag], posed(body, swung)[0, bag]
    assert np.allclose(moved - moved.mean(axis=0), at_rest - at_rest.mean(axis=0), atol=1e-4)
    assert moved[:, 0].mean() > at_rest[:, 0].mean() + 0.2


def test_a_coat_fills_the_gap_between_the_legs(bodies: BodyModel) -> None:
    body = bodies.body(plain())
    stride = STANDING.copy()
    stride[0, BONE["left_thigh"], 1], stride[0, BONE["right_thigh"], 1] = -0.5, 0.5

    def area(outfit: Outfit) -> int:
        worn = dressed(body, outfit, None)
        vertices = posed(worn, stride)
        points = np.stack([vertices[..., 0] * 60 + 64, 126 - vertices[..., 2] * 60], axis=-1)
        seen = fill(points.astype(np.float32), worn.faces, height=128, width=128)[0]
        return int((seen[75:115] > 0).sum())

    assert area(Outfit(skirt=0.9, skirt_ease=0.04)) > 1.3 * area(Outfit())


def test_every_drawn_body_and_outfit_is_closed_and_finite(bodies: BodyModel) -> None:
    rng = np.random.default_rng(7)
    for _ in range(12):
        outfit = draw_coat(rng, draw_outfit(rng))
        body = dressed(bodies.body(draw_phenotype(rng, spread=1.5)), outfit, draw_carried(rng))
        assert np.isfinite(body.vertices).all()
        assert body.faces.max() < len(body.vertices)
        assert np.allclose(body.weights.sum(axis=1), 1, atol=1e-4)


def test_bodies_differ_more_with_more_spread(bodies: BodyModel) -> None:
    def variety(spread: float) -> float:
        rng = np.random.default_rng(11)
        shapes = [bodies.body(draw_phenotype(rng, spread=spread)) for _ in range(8)]
        heights = [shape.vertices / np.ptp(shape.vertices[:, 2]) for shape in shapes]
        return float(np.std(np.stack(heights), axis=0).mean())

    assert variety(1.5) > 1.3 * variety(0.5)

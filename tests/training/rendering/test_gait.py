import numpy as np
import pytest

from tests.training.rendering.recorded import walking_bvh
from training.rendering.cycles import GaitCycle, find_cycles
from training.rendering.gait import Arms, draw_style, jittered, walk
from training.rendering.recordings import from_bvh
from training.rendering.skeleton import BONE


@pytest.fixture(scope="module")
def walkers() -> dict[str, list[GaitCycle]]:
    return {
        name: find_cycles(from_bvh(walking_bvh(period=period, hip=hip), walker=name, clip="1"))
        for name, period, hip in (("a", 1.0, 22.0), ("b", 1.3, 30.0))
    }


def test_the_same_seed_draws_the_same_walker(walkers: dict[str, list[GaitCycle]]) -> None:
    def poses() -> np.ndarray:
        rng = np.random.default_rng(5)
        style, _ = draw_style(rng, walkers, spread=1.0)
        return walk(style, rng, frames=20, fps=20, arms=Arms()).pose

    assert np.array_equal(poses(), poses())


def test_without_spread_a_walker_walks_as_recorded(walkers: dict[str, list[GaitCycle]]) -> None:
    rng = np.random.default_rng(1)
    style, name = draw_style(rng, walkers, spread=0.0)
    pose = walk(style, rng, frames=200, fps=50, arms=Arms()).pose
    recorded = walkers[name][0].pose
    for bone in ("left_thigh", "left_shank"):
        flexion = pose[:, BONE[bone], 1]
        assert np.ptp(flexion) == pytest.approx(np.ptp(recorded[:, BONE[bone], 1]), rel=0.07)


def test_any_number_of_frames_repeats_with_the_cycle(walkers: dict[str, list[GaitCycle]]) -> None:
    style, _ = draw_style(np.random.default_rng(2), {"a": walkers["a"]}, spread=0.0)
    stride = walk(style, np.random.default_rng(0), frames=500, fps=100, arms=Arms())
    thigh = stride.pose[:, BONE["left_thigh"], 1]
    crossings = np.flatnonzero((thigh[:-1] < 0) & (thigh[1:] >= 0))
    assert np.diff(crossings).mean() / 100 == pytest.approx(1.0, abs=0.03)
    assert np.all(np.diff(stride.ahead) > 0)


def test_two_walks_of_one_identity_are_nearer_than_two_identities(
    walkers: dict[str, list[GaitCycle]],
) -> None:
    rng = np.random.default_rng(0)

    def summary(style: object) -> np.ndarray:
        walked = jittered(style, rng, amount=1.0)  # type: ignore[arg-type]
        pose = walk(walked, rng, frames=120, fps=30, arms=Arms()).pose
        return np.concatenate([pose.mean(axis=0).ravel(), pose.std(axis=0).ravel()])

    styles = [draw_style(rng, walkers, spread=1.0)[0] for _ in range(12)]
    seen = np.stack([[summary(style), summary(style)] for style in styles])
    same = np.linalg.norm(seen[:, 0] - seen[:, 1], axis=-1).mean()
    other = np.linalg.norm(seen[:, None, 0] - seen[None, :, 1], axis=-1)
    assert same < 0.6 * other[~np.eye(12, dtype=bool)].mean()


def test_hands_that_carry_do_not_swing(walkers: dict[str, list[GaitCycle]]) -> None:
    swinging = {"a": [swung(walkers["a"][0])]}
    style, _ = draw_style(np.random.default_rng(3), swinging, spread=0.0)

    def swing(arms: Arms) -> float:
        pose = walk(style, np.random.default_rng(4), frames=60, fps=30, arms=arms).pose
        return float(np.ptp(pose[:, BONE["left_arm"], 1]))

    free, carrying = swing(Arms()), swing(Arms(swing=(0.1, 1.0)))
    assert free > 0.3
    assert carrying == pytest.approx(0.1 * free, rel=0.01)


def test_nobody_swings_an_arm_overhead(walkers: dict[str, list[GaitCycle]]) -> None:
    wild = {"a": [swung(walkers["a"][0], amplitude=2.0)]}
    style, _ = draw_style(np.random.default_rng(3), wild, spread=1.0)
    pose = walk(style, np.random.default_rng(4), frames=90, fps=30, arms=Arms()).pose
    assert np.ptp(pose[:, [BONE["left_arm"], BONE["right_arm"]], 1], axis=0).max() <= 1.6


def swung(cycle: GaitCycle, amplitude: float = 0.3) -> GaitCycle:
    pose = cycle.pose.copy()
    wave = amplitude * np.sin(2 * np.pi * np.arange(len(pose)) / len(pose))
    pose[:, BONE["left_arm"], 1] += wave
    pose[:, BONE["right_arm"], 1] -= wave
    return GaitCycle(cycle.walker, pose, cycle.sway, cycle.seconds, cycle.stride)

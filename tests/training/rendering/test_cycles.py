import numpy as np
import pytest

from tests.training.rendering.recorded import walking_bvh
from training.rendering.cycles import SAMPLES, GaitCycle, find_cycles
from training.rendering.recordings import from_bvh
from training.rendering.skeleton import BONE


def cycles_of(**walk: float) -> list[GaitCycle]:
    return find_cycles(from_bvh(walking_bvh(**walk), walker="x", clip="1"))


@pytest.mark.parametrize("heading", [0.0, 70.0, 180.0])
def test_cycles_have_the_walks_period_and_stride_whatever_its_direction(heading: float) -> None:
    cycles = cycles_of(period=1.1, speed=1.3, heading=heading)
    assert len(cycles) >= 2
    for cycle in cycles:
        assert cycle.seconds == pytest.approx(1.1, abs=0.02)
        assert cycle.stride == pytest.approx(1.3 * 1.1 / 0.86, rel=0.03)
        assert np.abs(cycle.pose[:, BONE["hips"]]).max() < 0.02


def test_a_cycle_closes() -> None:
    for cycle in cycles_of():
        steps = np.abs(np.diff(cycle.pose, axis=0, append=cycle.pose[:1]))
        assert steps[-1].max() < 1.5 * steps[:-1].max()


def test_a_cycle_starts_when_the_left_foot_passes_the_right() -> None:
    cycle = cycles_of()[0]
    thighs = cycle.pose[:, [BONE["left_thigh"], BONE["right_thigh"]], 1]
    before, after = thighs[-4], thighs[4]
    assert before[0] > before[1]  # the left thigh still behind: flexion ahead is negative
    assert after[0] < after[1]


def test_mirroring_twice_gives_the_walk_back() -> None:
    cycle = cycles_of()[0]
    again = cycle.mirrored().mirrored()
    assert np.allclose(again.pose, cycle.pose)
    assert np.allclose(again.sway, cycle.sway)
    left = cycle.pose[:, BONE["left_shank"], 1]
    right = cycle.mirrored().pose[:, BONE["right_shank"], 1]
    assert np.allclose(np.roll(left, -SAMPLES // 2), right)


def test_standing_and_running_have_no_walking_cycles() -> None:
    assert cycles_of(speed=0.0) == []
    assert cycles_of(speed=3.5) == []

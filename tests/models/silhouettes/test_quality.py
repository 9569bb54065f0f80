from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest

from models.silhouettes import (
    EXPLANATIONS,
    LEAST_FRAMES,
    Frame,
    PoorSequence,
    Quality,
    prepare,
)
from models.silhouettes.quality import Legs
from tests.models.silhouettes.uploads import walker

SIZE = (240, 320)


def drawn(draw: Callable[[Frame, int], object], count: int = 40) -> list[Frame]:
    frames = []
    for index in range(count):
        frame = np.zeros(SIZE, np.uint8)
        draw(frame, index)
        frames.append(frame)
    return frames


def noise(density: float, size: tuple[int, int] = SIZE, seed: int = 0) -> list[Frame]:
    random = np.random.default_rng(seed)
    return [np.where(random.random(size) < density, 255, 0).astype(np.uint8) for _ in range(40)]


def rectangle(frame: Frame, index: int) -> None:
    frame[50:200, 100:150] = 255


def passing_rectangle(frame: Frame, index: int) -> None:
    frame[50:200, 20 + 5 * index : 70 + 5 * index] = 255


def ellipse(frame: Frame, index: int) -> None:
    cv2.ellipse(frame, (150, 120), (30, 80), 0, 0, 360, 255, -1)


def breathing_ellipse(frame: Frame, index: int) -> None:
    cv2.ellipse(frame, (150, 120), (30 + round(10 * np.sin(index / 3)), 80), 0, 0, 360, 255, -1)


def car(frame: Frame, index: int) -> None:
    frame[120:170, 20 + 3 * index : 140 + 3 * index] = 255
    cv2.ellipse(frame, (80 + 3 * index, 110), (40, 30), 0, 0, 360, 255, -1)


def letter(text: str) -> Callable[[Frame, int], object]:
    def draw(frame: Frame, index: int) -> None:
        cv2.putText(frame, text, (120, 180), cv2.FONT_HERSHEY_SIMPLEX, 5, 255, 30)

    return draw


def refusal(frames: Sequence[Frame], *, clean: bool = True) -> PoorSequence:
    with pytest.raises(PoorSequence) as caught:
        prepare(frames, clean=clean)
    error = caught.value
    assert error.reasons
    assert set(error.reasons) <= set(EXPLANATIONS)
    assert all(EXPLANATIONS[code] in error.reason for code in error.reasons)
    return error


def accepted(frames: Sequence[Frame]) -> Quality:
    quality = prepare(frames).quality
    assert 0 <= quality.score <= 1
    return quality


def test_a_walk_passes_without_a_warning_and_with_a_high_score() -> None:
    quality = accepted(walker(48))
    assert quality.issues == ()
    assert quality.score > 0.9
    assert quality.frames_in == quality.frames_used == 48


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (drawn(rectangle), "not_a_person_shape"),
        (drawn(passing_rectangle), "not_a_person_shape"),
        (drawn(ellipse), "not_a_person_shape"),
        (drawn(breathing_ellipse), "not_a_person_shape"),
        (drawn(car), "not_a_person_shape"),
        *((drawn(letter(text)), "not_a_person_shape") for text in "AHTLX"),
        ([np.zeros(SIZE, np.uint8)] * 40, "empty_frames"),
        ([np.full(SIZE, 255, np.uint8)] * 40, "not_a_person_shape"),
        ([np.full((64, 64), 255, np.uint8)] * 40, "not_a_person_shape"),
        (noise(0.5), "not_a_person_shape"),
        (noise(0.1), "not_a_person_shape"),
        (noise(0.5, (64, 44)), "not_a_person_shape"),
        ([walker(6)[5]] * 40, "no_gait_cycle"),
        (walker(1), "too_few_frames"),
        (walker(LEAST_FRAMES - 1), "too_few_frames"),
    ],
)
def test_what_is_no_walk_is_refused_for_its_reason(frames: list[Frame], code: str) -> None:
    assert code in refusal(frames).reasons
    assert refusal(frames, clean=False).reasons


@pytest.mark.parametrize("density", [0.005, 0.01, 0.02, 0.03, 0.05, 0.2, 0.4, 0.6, 0.95])
def test_noise_of_any_density_is_refused(density: float) -> None:
    for seed in range(2):
        refusal(noise(density, seed=seed))
        refusal(noise(density, (64, 44), seed=seed))
        refusal(noise(density, seed=seed), clean=False)


def test_a_person_standing_still_has_no_gait_cycle_however_the_edge_flickers() -> None:
    random = np.random.default_rng(0)
    standing = walker(6)[5]
    kernel = np.ones((3, 3), np.uint8)
    thick, thin = cv2.dilate(standing, kernel), cv2.erode(standing, kernel)
    frames = [np.where(random.random(SIZE) < 0.5, thick, thin) for _ in range(40)]
    assert refusal(frames).reasons == ("no_gait_cycle",)


def test_a_segmentation_that_jumps_between_things_is_refused_for_that() -> None:
    walk = walker(40)
    for index in range(0, 40, 4):
        walk[index][120:] = 0
        walk[index + 1][:] = walker(1, height=230)[0]
        walk[index + 2][:130] = 0
    assert "area_jumps" in refusal(walk).reasons


def test_a_person_cut_by_the_border_in_most_frames_is_refused_for_that() -> None:
    walk = [np.ascontiguousarray(frame[:, 90:]) for frame in walker(16, speed=0)]
    assert refusal(walk).reasons == ("touches_border",)


def test_a_walk_that_ends_at_the_border_passes_with_a_warning() -> None:
    quality = accepted([np.ascontiguousarray(frame[:, :220]) for frame in walker(60)])
    assert "touches_border" in quality.issues
    assert quality.dropped["border"] > 15


def test_empty_frames_around_a_walk_only_warn() -> None:
    empty = [np.zeros(SIZE, np.uint8)] * 12
    quality = accepted([*empty, *walker(30), *empty])
    assert quality.issues == ("empty_frames",)
    assert quality.dropped == {"empty": 24}
    assert (quality.frames_in, quality.frames_used) == (54, 30)
    assert quality.score < accepted(walker(30)).score


def test_a_walk_in_a_long_clip_of_nobody_is_still_a_walk() -> None:
    quality = accepted([*walker(40), *[np.zeros(SIZE, np.uint8)] * 200])
    assert quality.issues == ("empty_frames",)
    assert quality.frames_used == 40


def test_a_short_walk_passes_with_a_warning_and_a_lower_score() -> None:
    quality = accepted(walker(12))
    assert "too_few_frames" in quality.issues
    assert quality.score < accepted(walker(30)).score < accepted(walker(60)).score


def test_less_than_a_cycle_warns_that_no_cycle_was_seen() -> None:
    assert "no_gait_cycle" in accepted(walker(9)).issues
    assert "no_gait_cycle" not in accepted(walker(36)).issues


def test_a_walk_at_a_low_frame_rate_passes() -> None:
    assert "no_gait_cycle" not in accepted(walker(96, speed=1)[::4]).issues


def test_the_judgement_of_a_refused_sequence_tells_what_was_dropped() -> None:
    error = refusal([np.zeros(SIZE, np.uint8)] * 9)
    assert error.quality.dropped == {"empty": 9}
    assert error.quality.frames_used == 0


def test_motion_equals_a_loop_over_all_pairs_of_frames() -> None:
    silhouettes = prepare(walker(30)).silhouettes
    legs = [
        cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA)[16:].astype(np.float64) / 255
        for frame in silhouettes
    ]
    norm = np.sqrt(np.mean([np.sum(frame**2) for frame in legs]))
    by_lag = [
        np.median([np.linalg.norm(legs[i + lag] - legs[i]) for i in range(30 - lag)]) / norm
        for lag in range(1, 26)
    ]
    dips = [1 - by_lag[index] / max(by_lag[: index + 1]) for index in range(len(by_lag))]
    motion = Legs(silhouettes).motion
    # cv2 rounds the halved frames to whole greys
    np.testing.assert_allclose(motion, (by_lag[0], max(by_lag), max(dips)), atol=0.01)

from __future__ import annotations

import cv2
import numpy as np
import pytest

from models.silhouettes import Frame, clean
from models.silhouettes.cleaning import find_person
from tests.models.silhouettes.uploads import walker


def rows_of(frame: Frame) -> slice:
    rows = np.flatnonzero(frame.any(axis=1))
    return slice(rows[0], rows[-1] + 1)


def strip(frame: Frame) -> Frame:
    """What cleaning makes of one frame that must hold a person."""
    found = find_person(frame)
    assert not isinstance(found, str), found
    return found.strip


def test_a_clean_walk_is_only_cut_to_the_person_s_rows() -> None:
    walk = walker()
    cleaned = clean(walk)
    assert cleaned.dropped == {}
    for ours, frame in zip(cleaned.strips, walk, strict=True):
        expected = frame[rows_of(frame)]
        assert ours.shape == expected.shape
        # The small closing rounds inner corners off; nothing else changes.
        assert (ours >= expected).all()
        assert (ours != expected).sum() < 0.03 * (expected > 0).sum()


def test_specks_and_a_smaller_second_shape_are_removed() -> None:
    frame = walker(1)[0]
    alone = strip(frame)
    noisy = frame.copy()
    noisy[10:14, 10:300:20] = 255
    noisy[120:180, 250:280] = 255
    np.testing.assert_array_equal(strip(noisy), alone)


def test_a_crack_through_the_person_is_closed() -> None:
    frame = walker(1)[0]
    cracked = frame.copy()
    cracked[100:103] = 0
    np.testing.assert_array_equal(strip(cracked) > 0, strip(frame) > 0)


def test_a_head_cut_off_by_a_gap_still_belongs_to_the_person() -> None:
    frame = walker(1)[0]
    beheaded = frame.copy()
    beheaded[66:78] = 0
    assert len(strip(beheaded)) == len(strip(frame))


def test_legs_cut_off_by_a_gap_still_belong_to_the_person() -> None:
    frame = walker(1)[0]
    gap = frame.copy()
    gap[125:145] = 0
    assert len(strip(gap)) == len(strip(frame))


def test_a_lamp_far_above_the_head_does_not_belong_to_the_person() -> None:
    frame = walker(1, height=100)[0]
    lamp = frame.copy()
    cv2.circle(lamp, (80, 25), 8, 255, -1)
    np.testing.assert_array_equal(strip(lamp), strip(frame))


def test_grey_edges_of_the_person_are_cut_at_half() -> None:
    frame = walker(1)[0]
    soft = np.asarray(cv2.GaussianBlur(frame, (0, 0), 1.5), np.uint8)
    hard = np.where(soft > 127, np.uint8(255), np.uint8(0))
    np.testing.assert_array_equal(strip(soft), strip(hard))


@pytest.mark.parametrize("frame", [np.zeros((240, 320), np.uint8), np.full((9, 9), 90, np.uint8)])
def test_a_frame_without_foreground_is_empty(frame: Frame) -> None:
    assert find_person(frame) == "empty"


def test_a_person_cut_by_the_side_border_is_dropped() -> None:
    frame = walker(1)[0]
    columns = np.flatnonzero(frame.any(axis=0))
    assert find_person(frame[:, columns[0] + 8 :].copy()) == "border"
    assert find_person(frame[:, : columns[-1] - 8].copy()) == "border"


def test_a_frame_cropped_to_the_person_is_no_person_cut_by_the_border() -> None:
    frame = walker(1)[0]
    columns = np.flatnonzero(frame.any(axis=0))
    cropped = frame[rows_of(frame), columns[0] : columns[-1] + 1].copy()
    assert strip(cropped).shape == cropped.shape


def test_a_person_who_reaches_top_and_bottom_is_kept() -> None:
    frame = walker(1)[0]
    assert len(strip(frame[rows_of(frame)].copy())) == len(strip(frame))


def test_fragments_and_outliers_are_dropped_and_counted() -> None:
    walk = walker()
    walk[10][130:] = 0  # no legs
    walk[20] = walker(21, height=230)[20]
    walk[30][:] = 0
    cleaned = clean(walk)
    assert cleaned.dropped == {"fragment": 1, "outlier": 1, "empty": 1}
    assert len(cleaned.strips) == len(walk) - 3


def test_a_person_who_comes_nearer_is_not_an_outlier() -> None:
    walk = [walker(index + 1, height=80 + index, speed=1)[index] for index in range(60)]
    assert clean(walk).dropped == {}


def test_no_frames_at_all_are_no_error() -> None:
    assert clean([]) == ([], {}, [])

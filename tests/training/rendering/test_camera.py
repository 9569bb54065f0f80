import numpy as np
import pytest

from training.rendering.camera import Camera, turned

# A person-high pole with an arm to its left and one ahead.
POLE = np.array([[[0, 0, 0], [0, 0, 1.8], [0, 0.5, 1], [0.5, 0, 1]]], np.float32)


def seen(camera: Camera) -> np.ndarray:
    points: np.ndarray = camera.project(POLE)[0]
    return points


def test_from_ahead_the_left_arm_is_on_the_right_of_the_image() -> None:
    points = seen(Camera(azimuth=0, distance=6, height=1.2))
    assert points[2, 0] > 0.4
    assert abs(points[3, 0]) < 0.01


def test_from_the_left_the_walker_goes_to_the_left() -> None:
    points = seen(Camera(azimuth=90, distance=6, height=1.2))
    assert points[3, 0] < -0.4
    assert seen(Camera(azimuth=270, distance=6, height=1.2))[3, 0] > 0.4


def test_heads_are_above_feet() -> None:
    points = seen(Camera(azimuth=30, distance=6, height=1.2))
    assert points[1, 1] < points[0, 1]


def test_a_metre_where_the_camera_looks_is_one() -> None:
    points = seen(Camera(azimuth=90, distance=50, height=0.9))
    assert points[0, 1] - points[1, 1] == pytest.approx(1.8, rel=0.01)


def test_who_comes_nearer_gets_larger() -> None:
    camera = Camera(azimuth=0, distance=6, height=1.2)
    path = np.array([[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    points = camera.project(turned(path, np.repeat(POLE, 3, axis=0), np.zeros(3)))
    tall = points[:, 0, 1] - points[:, 1, 1]
    assert tall[0] < tall[1] < tall[2]


def test_a_turned_walker_faces_its_heading() -> None:
    placed = turned(np.array([[1.0, 2.0]]), POLE, np.array([np.pi / 2]))
    assert placed[0, 3] == pytest.approx([1.0, 2.5, 1.0])


def test_a_camera_that_looks_higher_sees_the_walker_lower() -> None:
    low, high = (seen(Camera(azimuth=90, distance=6, height=2.5, aim=aim)) for aim in (0.9, 2.0))
    assert np.all(high[:, 1] > low[:, 1] + 0.5)


def test_a_wide_lens_draws_what_is_far_from_the_middle_in_and_folds_nothing_over() -> None:
    plain, wide = (seen(Camera(azimuth=90, distance=2, height=0.9, lens=k)) for k in (0.0, -0.3))
    assert np.all(np.linalg.norm(wide, axis=1) <= np.linalg.norm(plain, axis=1))
    shrunk = np.linalg.norm(wide, axis=1) / np.linalg.norm(plain, axis=1)
    assert shrunk[1] < shrunk[2] < 1  # the head is farther from the middle than the arm
    strong = seen(Camera(azimuth=90, distance=0.5, height=0.9, lens=-5.0))
    assert strong[1, 1] < 0 < strong[0, 1]


def test_wide_pixels_make_people_slim() -> None:
    plain, slim = (seen(Camera(azimuth=0, distance=6, height=1.2, width=w)) for w in (1.0, 1.25))
    assert slim[:, 0] == pytest.approx(plain[:, 0] / 1.25)
    assert slim[:, 1] == pytest.approx(plain[:, 1])

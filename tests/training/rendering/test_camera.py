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

import numpy as np
import pytest

from training.rendering.raster import fill

Array = np.ndarray


def naive(points: Array, faces: Array, height: int, width: int) -> Array:
    """Every pixel centre against every triangle that faces the camera."""
    image = np.zeros((len(points), height, width), np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    for frame, seen in enumerate(points.astype(np.float64)):
        for face in faces:
            corners = seen[face]
            sides = []
            for one, other in ((0, 1), (1, 2), (2, 0)):
                (x0, y0), (x1, y1) = corners[one], corners[other]
                sides.append((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0))
            inside = np.all(np.stack(sides) < 0, axis=0)
            image[frame][inside] = 255
    return image


def test_it_fills_what_a_naive_loop_over_pixels_fills() -> None:
    rng = np.random.default_rng(3)
    points = rng.uniform(-6, 46, (3, 30, 2)).astype(np.float32)
    faces = rng.integers(0, 30, (25, 3))
    found = fill(points, faces, height=40, width=36)
    assert np.array_equal(found, naive(points, faces, 40, 36))


def test_a_triangle_that_looks_away_or_is_flat_fills_nothing() -> None:
    corners = np.array([[[2, 2], [2, 30], [30, 2]]], np.float32)
    facing, away = np.array([[0, 1, 2]]), np.array([[0, 2, 1]])
    assert fill(corners, facing, height=32, width=32).any()
    assert not fill(corners, away, height=32, width=32).any()
    assert not fill(corners, np.array([[0, 1, 1]]), height=32, width=32).any()


@pytest.mark.parametrize("shift", [(-500.0, 0.0), (500.0, 0.0), (0.0, -500.0), (0.0, 500.0)])
def test_what_lies_outside_the_image_is_cut_off(shift: tuple[float, float]) -> None:
    corners = np.array([[[2, 2], [2, 30], [30, 2]]], np.float32) + np.array(shift, np.float32)
    assert not fill(corners, np.array([[0, 1, 2]]), height=32, width=32).any()

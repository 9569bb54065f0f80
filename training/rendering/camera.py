"""Where the camera stands, and the outline it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.rendering.skeleton import Floats


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at a walker.

    Attributes:
        azimuth: degrees between the direction of travel and the camera, seen from the walker in the
            middle of the walk, counter-clockwise: 0 sees the front, 90 the left side, 180 the back.
        distance: metres to the walker in the middle of the walk.
        height: metres above the ground.
        roll: degrees by which the camera is tilted sideways.
        aim: metres above the ground of what the camera looks at, in the middle of the walk.
        lens: by how much of itself a direction whose slope is 1 is bent outwards (below 0:
            inwards, as wide lenses do); it grows with the square of the slope.
        width: of a pixel for a height of 1.
    """

    azimuth: float
    distance: float
    height: float
    roll: float = 0.0
    aim: float = 0.9
    lens: float = 0.0
    width: float = 1.0

    def project(self, vertices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Image positions, in a scale in which a metre where the camera looks is 1.

        Args:
            vertices: `[s, v, 3]` in metres, x along the direction of travel.

        Returns:
            `[s, v, 2]`: right and down, origin where the camera looks.
        """
        angle = np.deg2rad(self.azimuth)
        eye = np.array([np.cos(angle) * self.distance, np.sin(angle) * self.distance, self.height])
        forward = np.array([0.0, 0.0, self.aim]) - eye
        reach = float(np.linalg.norm(forward))
        forward /= reach
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        up = np.cross(right, forward)
        roll = np.deg2rad(self.roll)
        right, up = (
            np.cos(roll) * right + np.sin(roll) * up,
            np.cos(roll) * up - np.sin(roll) * right,
        )
        axes = np.stack([right, -up, forward], axis=1).astype(np.float32)
        seen = (vertices - eye.astype(np.float32)) @ axes
        depth = np.maximum(seen[..., 2:], 0.3)  # nobody walks into the lens
        slopes = seen[..., :2] / depth
        if self.lens:
            bent = 1 + self.lens * (slopes**2).sum(axis=-1, keepdims=True)
            # Far outside of the image the formula would fold people over.
            slopes = slopes * np.clip(bent, 0.5, 2.0).astype(np.float32)
        if self.width != 1.0:
            slopes = slopes / np.array([self.width, 1.0], np.float32)
        return np.asarray(slopes * np.float32(reach))


def draw_camera(rng: np.random.Generator, azimuth: float) -> Camera:
    """A camera at an azimuth, at the height of a hip to under a roof, near or far."""
    distance = float(np.exp(rng.uniform(np.log(4.5), np.log(25.0))))
    low = rng.random() < 0.7
    height = float(rng.uniform(0.6, 1.8) if low else rng.uniform(1.8, 1.0 + 0.35 * distance))
    return Camera(azimuth, distance, height, float(rng.normal(0.0, 1.5)))


def turned(path: Floats, vertices: NDArray[np.float32], angles: Floats) -> NDArray[np.float32]:
    """Put each frame's walker on a path.

    Args:
        path: `[s, 2]` metres.
        vertices: `[s, v, 3]`, hips over the origin, facing x.
        angles: heading of each frame in radians, `[s]`.
    """
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x, y = vertices[..., 0], vertices[..., 1]
    placed = np.stack(
        [
            cosine * x - sine * y + path[:, :1],
            sine * x + cosine * y + path[:, 1:],
            vertices[..., 2],
        ],
        axis=-1,
    )
    return np.asarray(placed, dtype=np.float32)

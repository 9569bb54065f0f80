"""Filled triangles to binary images, a whole walk at once.

A silhouette is the union of its triangles, so a row of it is a union of intervals: all (triangle, row) intervals of all frames
are found together, summed as +1/-1 steps, and integrated along the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fill(
    points: NDArray[np.float32], faces: NDArray[np.int64], *, height: int, width: int
) -> NDArray[np.uint8]:
    """Silhouettes of a closed mesh, a pixel set where its centre lies in a triangle that faces the camera.

    Args:
        points: image positions in pixels, right and down, `[s, v, 2]`.
        faces: `[f, 3]`, counter-clockwise seen from outside.
        height: rows.
        width: columns.

    Returns:
        uint8 0/255 `[s, h, w]`; what lies outside the image is cut off.
    """
    frames = len(points)
    x, y = points[..., 0][:, faces], points[..., 1][:, faces]  # [s, f, 3]
    area = (x[..., 1] - x[..., 0]) * (y[..., 2] - y[..., 0]) - (x[..., 2] - x[..., 0]) * (
        y[..., 1] - y[..., 0]
    )
    # Rows grow downwards, so what is counter-clockwise outside has a negative area here. Back faces cover the same outline.
    frame, face = np.nonzero(area < 0)
    x, y = x[frame, face], y[frame, face]
    first = np.maximum(np.ceil(y.min(axis=1) - 0.5), 0).astype(np.int32)
    last = np.minimum(np.floor(y.max(axis=1) - 0.5), height - 1).astype(np.int32)
    some = last >= first
    x, y, frame, first, last = x[some], y[some], frame[some], first[some], last[some]
    order = np.argsort(y, axis=1)
    x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
    rows = last - first + 1
    triangle = np.repeat(np.arange(len(rows)), rows)
    start = np.cumsum(rows) - rows
    row = np.arange(len(triangle)) - np.repeat(start - first, rows)
    centre = row + np.float32(0.5)
    top_x, middle_x, bottom_x = x[triangle].T
    top, middle, bottom = y[triangle].T
    long_edge = top_x + (bottom_x - top_x) * _share(centre - top, bottom - top)
    upper = centre < middle
    short_edge = np.where(
        upper,
        top_x + (middle_x - top_x) * _share(centre - top, middle - top),
        middle_x + (bottom_x - middle_x) * _share(centre - middle, bottom - middle),
    )
    left = np.ceil(np.minimum(long_edge, short_edge) - 0.5)
    right = np.floor(np.maximum(long_edge, short_edge) - 0.5) + 1
    left = np.clip(left, 0, width).astype(np.int64)
    right = np.clip(right, 0, width).astype(np.int64)
    line = (frame[triangle] * height + row) * (width + 1)
    size = frames * height * (width + 1)
    steps = np.bincount(line + left, minlength=size) - np.bincount(
        line + np.maximum(left, right), minlength=size
    )
    inside = np.cumsum(steps.reshape(frames, height, width + 1), axis=2)[..., :width] > 0
    return inside.astype(np.uint8) * np.uint8(255)


def _share(part: NDArray[np.float32], whole: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 1e-9)

"""Filled triangles to binary images, a whole walk at once.

A silhouette is the union of its triangles, so a row of it is a union of intervals: all (triangle,
    row) intervals of all frames
are found together, summed as +1/-1 steps, and integrated along the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fill(
    points: NDArray[np.float32], faces: NDArray[np.int64], *, height: int, width: int
) -> NDArray[np.uint8]:
    """Silhouettes of a closed mesh: pixels whose centre lies in a triangle facing the camera.

    Args:
        points: image positions in pixels, right and down, `[s, v, 2]`.
        faces: `[f, 3]`, counter-clockwise seen from outside.
        height: rows.
        width: columns.

    Returns:
        uint8 0/255 `[s, h, w]`; what lies outside the image is cut off.
    """
    frames = len(points)
    x, y = np.ascontiguousarray(points[..., 0]), np.ascontiguousarray(points[..., 1])
    a, b, c = np.ascontiguousarray(faces.T)
    area = (x[:, b] - x[:, a]) * (y[:, c] - y[:, a]) - (x[:, c] - x[:, a]) * (y[:, b] - y[:, a])
    # Rows grow downwards: what is counter-clockwise in the world has a negative area. Back faces
    # add nothing to the outline.
    frame, face = np.nonzero(area < 0)
    corners = [(x[frame, corner[face]], y[frame, corner[face]]) for corner in (a, b, c)]
    for low, high in ((0, 1), (1, 2), (0, 1)):  # from top to bottom
        corners[low], corners[high] = _ordered(corners[low], corners[high])
    (top_x, top), (middle_x, middle), (bottom_x, bottom) = corners
    first = np.maximum(np.ceil(top - 0.5), 0).astype(np.int32)
    last = np.minimum(np.floor(bottom - 0.5), height - 1).astype(np.int32)
    rows = np.maximum(last - first + 1, 0)
    # Every edge as x = start + slope * row, taken at the middle of the row.
    edges = np.stack(
        [
            *_line(top_x, top, bottom_x, bottom),
            *_line(top_x, top, middle_x, middle),
            *_line(middle_x, middle, bottom_x, bottom),
            middle - np.float32(0.5),
        ]
    )
    triangle = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
    begin = np.cumsum(rows, dtype=np.int32) - rows
    row = np.arange(len(triangle), dtype=np.int32) - (begin - first)[triangle]
    at = row.astype(np.float32)
    edges = edges[:, triangle]
    through = edges[0] + edges[1] * at
    upper = at < edges[6]
    beside = np.where(upper, edges[2], edges[4]) + np.where(upper, edges[3], edges[5]) * at
    left = np.ceil(np.minimum(through, beside) - np.float32(0.5))
    right = np.floor(np.maximum(through, beside) - np.float32(0.5)) + 1
    left = np.clip(left, 0, width).astype(np.int32)
    right = np.maximum(left, np.clip(right, 0, width).astype(np.int32))
    line = (frame.astype(np.int32)[triangle] * height + row) * (width + 1)
    size = frames * height * (width + 1)
    steps = np.bincount(line + left, minlength=size) - np.bincount(line + right, minlength=size)
    inside = np.cumsum(steps.reshape(frames, height, width + 1), axis=2)[..., :width] > 0
    return inside.astype(np.uint8) * np.uint8(255)


_Corner = tuple[NDArray[np.float32], NDArray[np.float32]]


def _ordered(one: _Corner, other: _Corner) -> tuple[_Corner, _Corner]:
    """The higher of two corners first, triangle by triangle."""
    swap = one[1] > other[1]
    return (
        (np.where(swap, other[0], one[0]), np.where(swap, other[1], one[1])),
        (np.where(swap, one[0], other[0]), np.where(swap, one[1], other[1])),
    )


def _line(
    x0: NDArray[np.float32],
    y0: NDArray[np.float32],
    x1: NDArray[np.float32],
    y1: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Start and slope of the line through two points, by row; level ones give `x0` on all rows."""
    tall = y1 - y0
    slope = np.divide(x1 - x0, tall, out=np.zeros_like(tall), where=tall > 1e-6)
    return x0 - (y0 - np.float32(0.5)) * slope, slope

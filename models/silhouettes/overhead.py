"""What somebody holds over the head, an umbrella above all, taken off.

A person's rows are counted from the head, so what is above it makes everything else small.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from models.silhouettes.types import Frame

# Lengths are shares of the rows in which there is anything.
_WIDE: Final = 0.25  # the thing; heads have 0.1 to 0.15
_UPPERMOST: Final = 0.25  # where it begins
_THIN: Final = 0.05  # what holds it
_ABOVE: Final = 0.45  # where that ends at the latest
_HEAD: Final = 0.06  # wider than what holds it


def rows_overhead(strip: Frame) -> int:
    """How many rows at the top of a strip uint8 `[h, w]`, 0 and 255, are of what is held there.

    That is wide, and thin below before the head begins; 0 if there is no such thing.
    """
    height = len(strip)
    sums = cv2.reduce(strip[: round(_ABOVE * height)], 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    widths = np.asarray(sums, np.int64)[:, 0] / 255 / height
    wide = np.flatnonzero(widths[: round(_UPPERMOST * height)] >= _WIDE)
    if len(wide) == 0:
        return 0
    thin = np.flatnonzero(widths[wide[-1] :] <= _THIN)
    if len(thin) == 0:
        return 0
    below = wide[-1] + thin[0]
    head = np.flatnonzero(widths[below:] > _HEAD)
    return int(below + head[0]) if len(head) else 0

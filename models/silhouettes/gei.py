"""The gait energy image: the mean silhouette of a walk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.silhouettes.frame import Silhouettes
from models.silhouettes.normalise import cut


def gait_energy_image(silhouettes: Silhouettes) -> NDArray[np.float32]:
    """The mean over frames, in [0, 1] (Han and Bhanu, TPAMI 2006).

    Args:
        silhouettes: uint8 `[s, 64, 64]`, or cut to `[s, 64, 44]`.

    Returns:
        float32 `[64, 44]`.

    Raises:
        ValueError: there are no frames.
    """
    if len(silhouettes) == 0:
        raise ValueError("a gait energy image needs at least one frame")
    mean: NDArray[np.float64] = cut(silhouettes).mean(axis=0, dtype=np.float64)
    return (mean / 255).astype(np.float32)

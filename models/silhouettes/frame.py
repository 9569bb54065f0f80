"""The array types of this package."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Frame: TypeAlias = NDArray[np.uint8]
"""One silhouette, uint8 `[h, w]`: 0 is background, 255 the person, grey between them an edge."""

Silhouettes: TypeAlias = NDArray[np.uint8]
"""A normalised sequence, uint8 `[s, 64, 64]` (or `[s, 64, 44]` after `cut`)."""

"""The types that all modules of this package share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Frame: TypeAlias = NDArray[np.uint8]
"""One silhouette, uint8 `[h, w]`: 0 is background, 255 the person, grey between them an edge."""

Silhouettes: TypeAlias = NDArray[np.uint8]
"""A normalised sequence, uint8 `[s, 64, 64]` (or `[s, 64, 44]` after `cut`)."""


@dataclass(frozen=True, slots=True)
class Quality:
    """The judgement on one sequence.

    Attributes:
        score: in [0, 1], 1 being long, whole, steady and walking.
        issues: codes of `EXPLANATIONS`, warnings in a sequence that passed.
        frames_in: frames sent.
        frames_used: frames that remain.
        dropped: how many went for each reason: `empty`, `border`, `fragment`, `outlier`.
    """

    score: float
    issues: tuple[str, ...]
    frames_in: int
    frames_used: int
    dropped: dict[str, int]

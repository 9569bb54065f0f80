"""Whether people in a normalised sequence stand on their feet.

Legs move more than heads, in more separate stretches of a row, and are narrower than shoulders.
The weights are a logistic regression's, of 360 walks of 45 rendered people from all sides and the
same upside down. It says -4 or less of no walk of other rendered people, nor of 120 of real ones.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from models.silhouettes.types import Silhouettes

UPSIDE_DOWN: Final = -4.0
"""At most so upright is who stands on the head."""

DOUBTFUL: Final = -1.0
"""At most so upright is who may stand on the head."""

_FOREGROUND = 127
_BANDS = 8
_WEIGHTS: Final = np.array(  # of what a band has more than its mirror image, from the top down
    [
        (-4.05, 0.65, 3.56, 5.74),  # width of the person
        (-5.73, -3.25, -0.96, -2.43),  # change from frame to frame
        (-4.56, -2.88, 0.91, 0.81),  # separate stretches in a row
    ]
)


def measure_upright(silhouettes: Silhouettes) -> float:
    """How surely the heads of a sequence uint8 `[s, 64, 64]` are up; negative if they are down."""
    masks = silhouettes > _FOREGROUND
    mean = masks.mean(axis=0)
    widths = mean.sum(axis=1)
    changes = (mean * (1 - mean)).sum(axis=1)
    starts = masks[:, :, 1:] & ~masks[:, :, :-1]
    stretches = starts.sum(axis=2).mean(axis=0) + mean[:, 0]
    trunk = max(1.0, float(widths.mean()))
    bands = np.stack([widths / trunk, changes / trunk, stretches])
    bands = bands.reshape(len(bands), _BANDS, -1).mean(axis=2)
    apart = (bands - bands[:, ::-1])[:, : _BANDS // 2]
    return float((apart * _WEIGHTS).sum())


def turn_upright(silhouettes: Silhouettes, noticed: list[str]) -> Silhouettes:
    """The sequence, turned round if the heads are down; if they may be, that is noticed."""
    upright = measure_upright(silhouettes)
    if upright <= DOUBTFUL and "upside_down" not in noticed:
        noticed.append("upside_down")
    if upright > UPSIDE_DOWN:
        return silhouettes
    return np.ascontiguousarray(silhouettes[:, ::-1, ::-1])

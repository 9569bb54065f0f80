"""The temperature at which a teacher's distribution says something."""

from __future__ import annotations

import math

from training.objective.losses import LOGIT_SCALE


def informative_temperature(
    identities: int, *, gap: float = 0.8, scale: float = LOGIT_SCALE
) -> float:
    """The temperature that leaves about half of the probability on the true identity.

    With cosine `gap` between the true identity and the k - 1 others, softmax gives the true one
    1 / (1 + (k - 1) · exp(-scale · gap / T)); that is a half at T = scale · gap / ln(k - 1). A
    fixed temperature is nearly uniform for many identities (T = 4 and k = 3000 leave 0.0081).

    Args:
        identities: k, at least 3.
        gap: typical cosine of the true identity above the others, in (0, 2].
        scale: multiplies the logits.

    Raises:
        ValueError: fewer than three identities, or a gap outside (0, 2].
    """
    if identities < 3:
        raise ValueError(f"a temperature from the number of identities needs 3, got {identities}")
    if not 0 < gap <= 2:
        raise ValueError(f"a gap between cosines lies in (0, 2], got {gap}")
    return scale * gap / math.log(identities - 1)

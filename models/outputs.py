"""What every gait network returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GaitOutput(NamedTuple):
    """Per-part embeddings and identity logits of a batch.

    n sequences, c channels, p parts, k identities.
    """

    embeddings: Tensor  # [n, c, p], before the neck, not normalised: what is compared
    logits: Tensor  # [n, k, p], cosine logits in [-1, 1], not scaled

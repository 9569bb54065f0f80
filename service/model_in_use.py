"""What use cases need to know of the checkpoint in use."""

from __future__ import annotations

from dataclasses import dataclass

from models.card import Metric


@dataclass(frozen=True, slots=True)
class ModelInUse:
    """Name and digest for answers; the card's own threshold and metric for decisions."""

    name: str
    digest: str
    threshold: float | None
    metric: Metric

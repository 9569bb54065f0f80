"""The two losses every gait model of the field is trained with. Pure functions, float32 inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.distances import part_distances

LOGIT_SCALE = 16.0
"""What cosine logits are multiplied by before any softmax, in the field and here."""


def triplet(embeddings: Tensor, labels: Tensor, *, margin: float = 0.2) -> Tensor:
    """Batch-all triplet loss per part, averaged over the triplets that are not yet satisfied.

    For every anchor, every sequence of the same identity is a positive (the anchor itself too, as
    in OpenGait's TripletLoss) and every sequence of another identity a negative. Identities may
    come in different numbers.

    Args:
        embeddings: [n, c, p], before the neck, not normalised.
        labels: [n] integer identities.
        margin: by how much a negative must be farther than a positive, in the embedding's unit.

    Returns:
        A scalar: the mean over parts. A part in which no triplet is violated contributes 0.

    Raises:
        ValueError: the number of labels is not the number of sequences.
    """
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{embeddings.shape[0]} sequences need as many labels, got {tuple(labels.shape)}"
        )
    distances = part_distances(embeddings)  # [p, n, n]
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    anchor, positive = same.nonzero(as_tuple=True)  # m pairs
    gaps = distances[:, anchor, positive].unsqueeze(2) - distances[:, anchor]  # [p, m, n]
    hinge = F.relu(gaps + margin).masked_fill(same[anchor], 0.0)
    violated = (hinge > 0).sum(dim=(1, 2))
    return (hinge.sum(dim=(1, 2)) / violated.clamp(min=1)).mean()


def cross_entropy(
    logits: Tensor, labels: Tensor, *, scale: float = LOGIT_SCALE, smoothing: float = 0.1
) -> Tensor:
    """Identity cross-entropy with label smoothing, every part a classifier of its own.

    Args:
        logits: [n, k, p] cosine logits.
        labels: [n] integer identities in 0 … k - 1.
        scale: multiplies the logits.
        smoothing: probability spread evenly over all identities.

    Returns:
        A scalar: the mean over sequences and parts.
    """
    targets = labels.unsqueeze(1).expand(-1, logits.shape[2])
    return F.cross_entropy(logits.float() * scale, targets, label_smoothing=smoothing)


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of (sequence, part) pairs whose largest logit is the true one: a scalar."""
    return (logits.argmax(dim=1) == labels.unsqueeze(1)).float().mean()

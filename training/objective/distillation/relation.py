"""Relation distillation: all distances of a batch, same and different identities counted alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.distances import part_distances
from training.objective.distillation.alignment import align_parts


def relation_distillation(
    student: Tensor, teacher: Tensor, labels: Tensor, *, delta: float = 0.5
) -> Tensor:
    """Huber difference of normalised distances, balanced between kinds of pairs.

    A batch has many more pairs of different identities than of one; averaging each kind by itself
    keeps the few from being drowned (after RKD, Park et al., 1904.05068, and CORSD, 2305.00918).

    Args:
        student: embeddings [n, c, p].
        teacher: embeddings [n, c', p'], any width and number of parts; no gradient flows into them.
        labels: [n] integer identities.
        delta: where the Huber loss turns from quadratic to linear, in multiples of the mean
            distance.

    Returns:
        A scalar: the mean over pairs of one identity plus the mean over pairs of two, each a mean
        over parts. A kind without any pair contributes 0.

    Raises:
        ValueError: the numbers of sequences differ.
    """
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"sequences differ: {student.shape[0]} and {teacher.shape[0]}")
    own = _in_units_of_mean(part_distances(student))
    taught = part_distances(teacher.detach())
    taught = _in_units_of_mean(align_parts(taught.permute(1, 2, 0), own.shape[0]).permute(2, 0, 1))
    difference = F.huber_loss(own, taught, reduction="none", delta=delta)
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    groups = (same & ~itself, ~same)
    return sum(
        ((difference * group).sum(dim=(1, 2)) / group.sum().clamp(min=1)).mean() for group in groups
    ) + difference.new_zeros(())


def _in_units_of_mean(distances: Tensor) -> Tensor:
    n = distances.shape[-1]
    mean = distances.sum(dim=(1, 2), keepdim=True) / max(n * (n - 1), 1)  # the diagonal is 0
    return distances / mean.clamp(min=1e-6)

"""Activation-boundary distillation: on which side of zero the teacher's coordinates lie."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from training.objective.distillation.alignment import require_equal, require_positive


def activation_boundary(student: Tensor, teacher: Tensor, *, margin: float = 1.0) -> Tensor:
    """Squared hinge that pushes every coordinate beyond the margin on the teacher's side of zero.

    Heo et al. (AAAI 2019, 1811.03233), as GaitKD applies it to embeddings. The sign of a coordinate
    depends on the basis, which a metric loss leaves free: the term is not invariant to a rotation
    of the teacher, and teachers of different bases pull against each other unless each has a
    connector.

    Args:
        student: embeddings [n, c, p], or feature maps [n, c, …] with two or more further axes.
        teacher: the same shape; no gradient flows into it. Zero counts as negative.
        margin: distance from zero that satisfies the term, in the embedding's unit.

    Returns:
        A scalar: the sum over channels, averaged over sequences and, for embeddings, over parts.
        For maps all positions are summed too, as in the source.

    Raises:
        ValueError: the shapes differ or the margin is not positive.
    """
    require_equal(student, teacher, "embeddings")
    require_positive(margin, "margin")
    side = (teacher.detach() > 0).float() * 2 - 1
    rows = student.shape[0] * student.shape[2] if student.dim() == 3 else student.shape[0]
    return F.relu(margin - side * student.float()).square().sum() / rows


def relative_boundary(student: Tensor, teacher: Tensor, *, margin: float = 1.0) -> Tensor:
    """The boundary term in units of the teacher's own coordinates.

    An absolute margin charges even a perfect copy of a teacher with small coordinates. Here each
    part is first divided by the teacher's mean magnitude in it.

    Args:
        student: embeddings [n, c, p].
        teacher: embeddings [n, c, p]; no gradient flows into them.
        margin: in multiples of the part's mean |teacher coordinate|.

    Returns:
        A scalar: the sum over channels, averaged over sequences and parts.

    Raises:
        ValueError: the shapes differ or the margin is not positive.
    """
    require_equal(student, teacher, "embeddings")
    unit = teacher.detach().float().abs().mean(dim=(0, 1)).clamp(min=1e-6)  # [p]
    return activation_boundary(student.float() / unit, teacher, margin=margin)

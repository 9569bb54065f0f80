"""Hint distillation: the teacher's embedding itself (FitNets, Romero et al., 1412.6550)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from training.distillation.shapes import require_equal


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of embeddings.

    Args:
        student: [n, c, p], behind a connector when widths or bases differ.
        teacher: [n, c, p]; no gradient flows into it.

    Returns:
        A scalar: the mean over sequences, channels and parts.

    Raises:
        ValueError: the shapes differ.
    """
    require_equal(student, teacher, "embeddings")
    return F.mse_loss(student.float(), teacher.detach().float())

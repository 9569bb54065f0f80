"""Hint distillation (FitNets, Romero et al., 1412.6550): the teacher's embedding itself.

A hint usually goes through a connector, which is trained with the student and then thrown away.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.objective.distillation.alignment import require_equal


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


class Connector(nn.Module):
    """A linear map per part from the student's width and basis to a teacher's.

    The student's coordinates are normalised over the batch first, so the output starts with unit
    variance whatever the student's scale is; the map learns the teacher's.

    Args:
        parts: p, of the student (teachers are aligned to it).
        student_channels: c.
        teacher_channels: c'.
    """

    def __init__(self, parts: int, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(student_channels * parts, affine=False)
        self.weight = nn.Parameter(
            torch.randn(parts, student_channels, teacher_channels) * student_channels**-0.5
        )
        self.bias = nn.Parameter(torch.zeros(parts, teacher_channels))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings [n, c, p] to [n, c', p]."""
        normalised = self.norm(embeddings.flatten(1)).view_as(embeddings)
        return torch.einsum("ncp,pcd->ndp", normalised, self.weight) + self.bias.T

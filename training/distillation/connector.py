"""What ties a student's embedding to a teacher's in training, and is thrown away after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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

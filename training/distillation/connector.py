"""What stands between a student's embedding and a teacher's in training, and is thrown away after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Connector(nn.Module):
    """A linear map per part from the student's width to a teacher's: each teacher's basis is its own.

    Args:
        parts: p, of the student (teachers are aligned to it).
        student_channels: c.
        teacher_channels: c'.
    """

    def __init__(self, parts: int, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        # Variance 1 / c keeps the embedding's size, so a term weighs the same with and without a connector.
        scale = student_channels**-0.5
        self.weight = nn.Parameter(torch.randn(parts, student_channels, teacher_channels) * scale)
        self.bias = nn.Parameter(torch.zeros(parts, teacher_channels))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings [n, c, p] to [n, c', p]."""
        return torch.einsum("ncp,pcd->ndp", embeddings, self.weight) + self.bias.T

"""What is optimised: the student, and the connectors that tie it to its teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from models.networks.network import GaitNetwork
from training.distillation.connector import Connector


class Learned(NamedTuple):
    """What the student made of a batch.

    n sequences, c channels, p parts, k identities; c' is the width of a teacher.
    """

    embeddings: Tensor  # [n, c, p]
    logits: Tensor  # [n, k, p], cosines
    connected: tuple[Tensor, ...]  # per teacher [n, c', p]; empty without connectors


class Learner(nn.Module):
    """Student and connectors in one module, so that one optimiser and one DDP hold both.

    Args:
        student: the network that will be saved.
        teacher_channels: width of each teacher that gets a connector; empty for none.
    """

    def __init__(self, student: GaitNetwork, teacher_channels: Sequence[int] = ()) -> None:
        super().__init__()
        self.student = student
        self.connectors = nn.ModuleList(
            Connector(student.parts, student.channels, channels) for channels in teacher_channels
        )

    def forward(self, silhouettes: Tensor, lengths: tuple[int, ...] | None = None) -> Learned:
        """Embed a batch, see `GaitNetwork.forward`."""
        output = self.student(silhouettes, lengths)
        embeddings = output.embeddings.float()
        return Learned(
            embeddings,
            output.logits.float(),
            tuple(connector(embeddings) for connector in self.connectors),
        )

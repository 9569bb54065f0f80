"""The modules that are optimised: the student and the connectors to its teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor, nn

from models.networks.network import GaitNetwork
from training.objective.distillation.hint import Connector


class StudentOutput(NamedTuple):
    """Outputs of the student for a batch.

    n sequences, c channels, p parts, k identities; c' is the width of a teacher.
    """

    embeddings: Tensor  # [n, c, p]
    logits: Tensor  # [n, k, p], cosines
    connected: tuple[Tensor, ...]  # per teacher [n, c', p]; empty without connectors
    stages: tuple[Tensor, ...] = ()  # maps [n, c, s, h, w] behind each; empty unless asked for


class ConnectedStudent(nn.Module):
    """Student and connectors in one module, so that one optimiser and one DDP hold both.

    Args:
        student: the network that will be saved.
        teacher_channels: width of each teacher that gets a connector; empty for none.
        frozen_stages: the student's stem and so many first stages stay as they are. They see the
            most pixels, so a step without their gradients is far cheaper.
        stages: whether the maps between stages are wanted.
    """

    def __init__(
        self,
        student: GaitNetwork,
        teacher_channels: Sequence[int] = (),
        *,
        frozen_stages: int = 0,
        stages: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self._stages = stages
        student.requires_grad_(True)  # an earlier stage of the run may have frozen some
        backbone = student.backbone
        self._frozen = [backbone.stem, *backbone.in_order[:frozen_stages]] if frozen_stages else []
        for module in self._frozen:
            module.requires_grad_(False)
        self.connectors = nn.ModuleList(
            Connector(student.parts, student.channels, channels) for channels in teacher_channels
        )

    def train(self, mode: bool = True) -> Self:
        """As any module, but what is frozen keeps its batch statistics."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, silhouettes: Tensor, lengths: tuple[int, ...] | None = None) -> StudentOutput:
        """Embed a batch, see `GaitNetwork.forward`."""
        maps: list[Tensor] = []
        if self._stages:
            output, maps = self.student.stages(silhouettes)
        else:
            output = self.student(silhouettes, lengths)
        embeddings = output.embeddings.float()
        return StudentOutput(
            embeddings,
            output.logits.float(),
            tuple(connector(embeddings) for connector in self.connectors),
            tuple(maps),
        )

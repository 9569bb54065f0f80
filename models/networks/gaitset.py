"""GaitSet: a walk as a set of frames, and a second path over what the set has (1811.06186)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.networks.blocks import max_over_time
from models.networks.network import Depth, GaitNetwork, NetworkConfig, SequenceBackbone, Width
from models.networks.plain import STAGES, frame_stage_maps, plain_stages, plain_stem
from models.networks.pooling import PYRAMID, strip_pool


class GaitSetConfig(NetworkConfig):
    """Widths and depths; the defaults are the network published for CASIA-B.

    Attributes:
        layers: convolutions of each stage, the stem among the first's.
        parts: of two pyramids of 16, 8, 4, 2 and 1 strips: the frames' and the set's.
    """

    architecture: ClassVar[str] = "gaitset"

    quantised: None = None  # the other two alone have forms of whole numbers
    channels: tuple[Width, Width, Width, Width] = (32, 64, 128, 128)
    layers: tuple[Depth, Depth, Depth, Depth] = (2, 2, 1, 1)
    parts: Literal[62] = 62


class SetBackbone(SequenceBackbone):
    """Frame by frame, and beside that over the maximum of all frames.

    Args:
        stem: single silhouettes to maps.
        stages: four, of frames.
        set_stages: three like the last of those, of the set.
    """

    is_temporal: ClassVar[bool] = False

    def __init__(
        self, stem: nn.Module, stages: list[nn.Module], set_stages: list[nn.Module]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.set_stages = nn.ModuleList(set_stages)

    @property
    def in_order(self) -> list[nn.Module]:
        """The stages of frames."""
        return list(self.stages)

    def stage_maps(self, silhouettes: Tensor) -> list[Tensor]:
        """Behind each stage the maps `[n, c, s, h', w']` of clips `[n, s, h, w]`."""
        return frame_stage_maps(self.stem, self.stages, silhouettes)

    def over_stages(self, maps: list[Tensor]) -> Tensor:
        """`stage_maps` to the frames' maximum and, below it, the set's map: `[n, c, 2h, w]`."""
        first, second, _, last = map(max_over_time, maps)
        of_set = self.set_stages[0](first) + second
        of_set = self.set_stages[2](self.set_stages[1](of_set)) + last
        return torch.cat((last, of_set.to(last.dtype)), dim=2)


class TwoPyramids(nn.Module):
    """Strips of the upper and of the lower half of maps, each in ever larger strips.

    Source: arXiv 1804.05275.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[n, c, 2h, w]` to strips `[n, c, 62]`.

        Raises:
            ValueError: h can't be divided into 16 strips.
        """
        strips = [strip_pool(half, parts) for half in maps.chunk(2, dim=2) for parts in PYRAMID]
        return torch.cat(strips, dim=2)


def build_gaitset(config: GaitSetConfig) -> GaitNetwork:
    """An untrained GaitSet."""
    whole = (0,) * STAGES
    set_stages = plain_stages(config, whole)[1:]
    backbone = SetBackbone(plain_stem(config), plain_stages(config, whole), set_stages)
    return GaitNetwork(config, backbone, TwoPyramids())

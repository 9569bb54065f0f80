"""GaitGL: 3-D convolutions of whole frames and of their strips, side by side (arXiv 2011.01461)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import of_silhouettes
from models.networks.network import Depth, GaitNetwork, NetworkConfig, SequenceBackbone, Width
from models.networks.plain import from_strips, into_strips


class GaitGLConfig(NetworkConfig):
    """Widths, depths and strips; the defaults are the network published for CASIA-B.

    That for OU-MVLP and GREW has channels 32, 64, 128, 256, layers 2, 2, 2, 2 and one halving.

    Attributes:
        layers: convolutions of each stage, the stem among the first's.
        halving: how often maps are halved into strips that are also seen alone.
    """

    architecture: ClassVar[str] = "gaitgl"

    quantised: None = None  # the other two alone have forms of whole numbers
    channels: tuple[Width, Width, Width, Width] = (32, 64, 128, 128)
    layers: tuple[Depth, Depth, Depth, Depth] = (1, 1, 1, 1)
    halving: Annotated[int, Field(ge=0, le=6)] = 3
    embedding_channels: Width = 128
    parts: Annotated[int, Field(ge=1, le=64)] = 64


class LeakyConv3d(nn.Module):
    """A 3-D convolution without bias and a leaky rectifier, of clips.

    With `short`, instead a convolution of every three frames into one.
    """

    def __init__(self, channels_in: int, channels: int, *, short: bool = False) -> None:
        super().__init__()
        self.conv = (
            nn.Conv3d(channels_in, channels, (3, 1, 1), (3, 1, 1), bias=False)
            if short
            else nn.Conv3d(channels_in, channels, 3, padding=1, bias=False)
        )
        nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips `[n, c, s, h, w]` to `[n, c', s, h, w]`, or s // 3."""
        return functional.leaky_relu(self.conv(clips), inplace=True)


class GlobalLocal(nn.Module):
    """A convolution of whole frames and one of strips: added up, or one below the other."""

    def __init__(
        self, channels_in: int, channels: int, halving: int, *, stacks: bool = False
    ) -> None:
        super().__init__()
        self.whole = LeakyConv3d(channels_in, channels)
        self.strips = LeakyConv3d(channels_in, channels)
        self.halving = halving
        self.stacks = stacks

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips `[n, c, s, h, w]` to `[n, c', s, h, w]`, or 2h.

        Raises:
            ValueError: the rows can't be divided into the strips.
        """
        strips = from_strips(self.strips(into_strips(clips, self.halving)), self.halving)
        whole: Tensor = self.whole(clips)
        return torch.cat((whole, strips), dim=3) if self.stacks else whole + strips


class GlobalLocalBackbone(SequenceBackbone):
    """Clips to maps; a clip of fewer than three frames is repeated until it has them."""

    is_temporal: ClassVar[bool] = True

    def __init__(self, stem: nn.Module, stages: list[nn.Module]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    @property
    def in_order(self) -> list[nn.Module]:
        """Its stages, without the stem."""
        return list(self.stages)

    def stage_maps(self, silhouettes: Tensor) -> list[Tensor]:
        """Behind each stage the maps `[n, c, s // 3, h', w']` of clips `[n, s, h, w]`."""
        frames = silhouettes.shape[1]
        maps = self.stem(of_silhouettes(silhouettes.repeat(1, -(-3 // frames), 1, 1)))
        found = []
        for stage in self.stages:
            maps = stage(maps)
            found.append(maps)
        return found


class GeneralisedMean(nn.Module):
    """Strips by a generalised mean, `mean(x^e)^(1/e)`, whose exponent is learnt (arXiv 1711.02512).

    Args:
        parts: a divisor of the rows.
    """

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.exponent = nn.Parameter(torch.full((1,), 6.5))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[n, c, h, w]` to strips `[n, c, p]`.

        Raises:
            ValueError: the rows can't be divided into the strips.
        """
        rows = maps.shape[2]
        if rows % self.parts:
            raise ValueError(
                f"{rows} rows of features can't be divided into {self.parts} equal parts"
            )
        strips = maps.float().reshape(*maps.shape[:2], self.parts, -1).clamp(min=1e-6)
        return strips.pow(self.exponent).mean(-1).pow(1 / self.exponent)


def build_gaitgl(config: GaitGLConfig) -> GaitNetwork:
    """An untrained GaitGL."""
    first, *rest = config.layers
    width = config.channels[0]
    stages: list[nn.Module] = [
        nn.Sequential(
            *(LeakyConv3d(width, width) for _ in range(first - 1)),
            LeakyConv3d(width, width, short=True),
        )
    ]
    for number, ((before, after), depth) in enumerate(
        zip(pairwise(config.channels), rest, strict=True)
    ):
        widths = pairwise([before, *[after] * depth])
        blocks: list[nn.Module] = [
            GlobalLocal(*pair, config.halving, stacks=number == 2 and place == depth - 1)
            for place, pair in enumerate(widths)
        ]
        if number == 0:
            blocks.append(nn.MaxPool3d((1, 2, 2)))
        stages.append(nn.Sequential(*blocks))
    backbone = GlobalLocalBackbone(LeakyConv3d(1, width), stages)
    return GaitNetwork(config, backbone, GeneralisedMean(config.parts))

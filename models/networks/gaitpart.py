"""GaitPart: parts of frames, each with an attention over short times of its own (CVPR 2020)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import as_frames
from models.networks.network import Depth, GaitNetwork, NetworkConfig, SequenceBackbone, Width
from models.networks.plain import frame_stage_maps, plain_stages, plain_stem
from models.networks.pooling import strip_pool

Halving = Annotated[int, Field(ge=0, le=6)]


class GaitPartConfig(NetworkConfig):
    """Widths and depths; the defaults are the network published for CASIA-B.

    Attributes:
        layers: convolutions of each stage, the stem among the first's.
        halvings: how often each stage halves its maps into strips that it sees alone.
    """

    architecture: ClassVar[str] = "gaitpart"

    quantised: None = None  # the other two alone have forms of whole numbers
    channels: tuple[Width, Width, Width, Width] = (32, 64, 128, 128)
    layers: tuple[Depth, Depth, Depth, Depth] = (2, 2, 1, 1)
    halvings: tuple[Halving, Halving, Halving, Halving] = (0, 2, 3, 3)
    embedding_channels: Width = 128


class PartTimes(nn.Module):
    """Short times of each part, weighted by what is seen in them; then the maximum over time.

    Two branches, of 3 and of 5 frames: mean plus maximum over these, times a sigmoid. A part's
    convolutions are a group.

    Args:
        channels: of a part.
        parts: their number.
    """

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        narrow = max(1, channels // 4)

        def conv(before: int, after: int, size: int) -> nn.Conv1d:
            made = nn.Conv1d(
                before * parts, after * parts, size, padding=size // 2, groups=parts, bias=False
            )
            for own in made.weight.data.chunk(parts):
                nn.init.xavier_uniform_(own)
            return made

        self.three = nn.Sequential(
            conv(channels, narrow, 3), nn.LeakyReLU(), conv(narrow, channels, 1)
        )
        self.five = nn.Sequential(
            conv(channels, narrow, 3), nn.LeakyReLU(), conv(narrow, channels, 3)
        )

    def forward(self, strips: Tensor) -> Tensor:
        """Strips of frames `[n, s, c, p]` to `[n, c, p]`."""
        times = strips.permute(0, 3, 2, 1).flatten(1, 2)
        weighted = torch.zeros_like(times)
        for frames, branch in ((3, self.three), (5, self.five)):
            mean = functional.avg_pool1d(times, frames, 1, frames // 2)
            most = functional.max_pool1d(times, frames, 1, frames // 2)
            weighted = weighted + (mean + most) * branch(times).sigmoid()
        count, _, channels, parts = strips.shape
        return weighted.amax(2).view(count, parts, channels).transpose(1, 2)


class PartBackbone(SequenceBackbone):
    """Frame by frame to strips, then each strip over time.

    Args:
        stem: single silhouettes to maps.
        stages: four, of frames.
        times: strips over time.
        parts: number of strips.
    """

    is_temporal: ClassVar[bool] = True

    def __init__(
        self, stem: nn.Module, stages: list[nn.Module], times: PartTimes, parts: int
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.times = times
        self.parts = parts

    @property
    def in_order(self) -> list[nn.Module]:
        """The stages of frames."""
        return list(self.stages)

    @property
    def last_stage(self) -> nn.Module:
        """The strips over time."""
        return self.times

    def stage_maps(self, silhouettes: Tensor) -> list[Tensor]:
        """Behind each stage the maps `[n, c, s, h', w']` of clips `[n, s, h, w]`."""
        return frame_stage_maps(self.stem, self.stages, silhouettes)

    def over_stages(self, maps: list[Tensor]) -> Tensor:
        """`stage_maps` to strips as maps of one column, `[n, c, p, 1]`."""
        last = maps[-1]
        strips = strip_pool(as_frames(last), self.parts)
        pooled: Tensor = self.times(strips.view(len(last), -1, *strips.shape[1:]))
        return pooled.unsqueeze(-1)


def build_gaitpart(config: GaitPartConfig) -> GaitNetwork:
    """An untrained GaitPart."""
    backbone = PartBackbone(
        plain_stem(config),
        plain_stages(config, config.halvings),
        PartTimes(config.channels[-1], config.parts),
        config.parts,
    )
    return GaitNetwork(config, backbone, nn.Flatten(2))

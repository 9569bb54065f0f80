"""Stages of plain convolutions without normalisation, which GaitSet and GaitPart are made of."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import as_clips, of_silhouettes
from models.networks.network import NetworkConfig

STAGES: Final = 4
POOLED: Final = 2  # so many first stages end with a maximum over 2 x 2 pixels


class FocalConv(nn.Module):
    """A convolution of frames and a leaky rectifier; it may see horizontal strips alone.

    Source: GaitPart, CVPR 2020, section 3.2.

    Args:
        channels_in: of the frames.
        channels: of the maps.
        size: rows and columns of the kernel, odd; padded to keep the frames' size.
        halving: how often the frames are halved into strips; 0 for whole frames.
    """

    def __init__(self, channels_in: int, channels: int, size: int = 3, halving: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, size, padding=size // 2, bias=False)
        nn.init.xavier_uniform_(self.conv.weight)
        self.halving = halving

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames `[f, c, h, w]` to `[f, c', h, w]`.

        Raises:
            ValueError: the rows can't be divided into the strips.
        """
        strips = into_strips(frames, self.halving)
        maps = functional.leaky_relu(self.conv(strips), inplace=True)
        return from_strips(maps, self.halving)


def into_strips(maps: Tensor, halving: int) -> Tensor:
    """See maps `[f, c, …, h, w]` as `2**halving` strips each, `[f * strips, c, …, h / strips, w]`.

    Raises:
        ValueError: the rows can't be divided into the strips.
    """
    strips = 2**halving
    if strips == 1:
        return maps
    if maps.shape[-2] % strips:
        raise ValueError(f"{maps.shape[-2]} rows can't be divided into {strips} equal strips")
    cut = maps.reshape(*maps.shape[:-2], strips, maps.shape[-2] // strips, maps.shape[-1])
    return cut.movedim(-3, 1).flatten(0, 1)


def from_strips(maps: Tensor, halving: int) -> Tensor:
    """The inverse of `into_strips`."""
    strips = 2**halving
    if strips == 1:
        return maps
    cut = maps.reshape(len(maps) // strips, strips, *maps.shape[1:])
    return cut.movedim(1, -3).flatten(-3, -2)


def plain_stem(config: NetworkConfig) -> FocalConv:
    """The first convolution, of single silhouettes."""
    return FocalConv(1, config.channels[0], size=5)


def plain_stages(config: NetworkConfig, halvings: tuple[int, ...]) -> list[nn.Module]:
    """Four stages of `config.layers` convolutions, of which the stem is the first."""
    depths = (config.layers[0] - 1, *config.layers[1:])
    stages: list[nn.Module] = []
    before = config.channels[0]
    for number, (width, depth, halving) in enumerate(
        zip(config.channels, depths, halvings, strict=True)
    ):
        widths = pairwise([before, *[width] * depth])
        convs = [FocalConv(*pair, halving=halving) for pair in widths]
        stages.append(nn.Sequential(*convs, *[nn.MaxPool2d(2)] * (number < POOLED)))
        before = width
    return stages


def frame_stage_maps(stem: nn.Module, stages: nn.ModuleList, silhouettes: Tensor) -> list[Tensor]:
    """Behind each stage the maps `[n, c, s, h', w']` of clips `[n, s, h, w]`, frame by frame."""
    maps = stem(of_silhouettes(silhouettes.flatten(0, 1)))
    found = []
    for stage in stages:
        maps = stage(maps)
        found.append(as_clips(maps, silhouettes.shape[1]))
    return found

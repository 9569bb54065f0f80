"""DeepGaitV2: a deeper residual network, over frames or over time as well (arXiv 2303.03301)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Final, Literal

from models.networks.blocks import (
    Block,
    ResidualBlock,
    ResidualBlock3d,
    ResidualBlockP3d,
    conv2d,
    stage,
)
from models.networks.network import (
    ClipBackbone,
    Depth,
    FrameBackbone,
    GaitNetwork,
    NetworkConfig,
)

BLOCKS: Final[dict[str, Block]] = {
    "2d": ResidualBlock,
    "p3d": ResidualBlockP3d,
    "3d": ResidualBlock3d,
}
STRIDES: Final = (1, 2, 2, 1)


class DeepGaitV2Config(NetworkConfig):
    """Width, depth and kind of convolution; the defaults are the network published for Gait3D."""

    architecture: ClassVar[str] = "deepgaitv2"

    mode: Literal["2d", "p3d", "3d"] = "p3d"
    layers: tuple[Depth, Depth, Depth, Depth] = (1, 4, 4, 1)


def build_deepgaitv2(config: DeepGaitV2Config) -> GaitNetwork:
    """An untrained DeepGaitV2; its first stage sees single frames in every mode."""
    widths = (config.channels[0], *config.channels)
    kinds = (ResidualBlock, *(BLOCKS[config.mode],) * 3)
    first, *rest = (
        stage(kind, before, after, depth=depth, stride=stride)
        for kind, (before, after), depth, stride in zip(
            kinds, pairwise(widths), config.layers, STRIDES, strict=True
        )
    )
    stem = conv2d(1, widths[0])
    if config.mode == "2d":
        return GaitNetwork(config, FrameBackbone(stem, [first, *rest]))
    return GaitNetwork(config, ClipBackbone(stem, first, rest))

"""GaitBase: a small residual network over single frames (OpenGait, arXiv 2211.06597)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from models.networks.blocks import ResidualBlock, conv2d, stage
from models.networks.network import FrameBackbone, GaitNetwork, NetworkConfig, Stride


class GaitBaseConfig(NetworkConfig):
    """Width, depth and strides of a GaitBase; the defaults are the published network.

    Attributes:
        strides: of each stage in height and width; silhouettes of 64 x 44 become maps of 16 x 11.
    """

    architecture: ClassVar[str] = "gaitbase"

    strides: tuple[Stride, Stride, Stride, Stride] = (1, 2, 2, 1)


def build_gaitbase(config: GaitBaseConfig) -> GaitNetwork:
    """An untrained GaitBase."""
    widths = (config.channels[0], *config.channels)
    stages = [
        stage(ResidualBlock, before, after, depth=depth, stride=stride)
        for (before, after), depth, stride in zip(
            pairwise(widths), config.layers, config.strides, strict=True
        )
    ]
    return GaitNetwork(config, FrameBackbone(conv2d(1, widths[0]), stages))

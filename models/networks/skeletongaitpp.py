"""SkeletonGait++: silhouettes and pose maps, fused behind the first stage (arXiv 2311.13444).

Behind the fusion it is a DeepGaitV2 of the kind `p3d`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from models.networks.blocks import ConvNorm, ResidualBlock, ResidualBlockP3d, conv2d, stage
from models.networks.deepgaitv2 import STRIDES
from models.networks.network import ClipBackbone, Depth, GaitNetwork, NetworkConfig

POSE_MAPS: Final = 2  # limbs, joints
SQUEEZE: Final = 16  # how many times narrower the attention is than the maps that it weighs


class SkeletonGaitPPConfig(NetworkConfig):
    """Width and depth; the defaults are the network published for Gait3D."""

    architecture: ClassVar[str] = "skeletongaitpp"

    quantised: None = None
    layers: tuple[Depth, Depth, Depth, Depth] = (1, 4, 4, 1)


class TwoStems(nn.Module):
    """A convolution of the pose maps and one of the silhouette of each frame.

    Args:
        channels: of the maps that each gives.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.silhouettes = conv2d(1, channels)
        self.poses = ConvNorm(nn.Conv2d(POSE_MAPS, channels, 3, padding=1, bias=False))

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames `[f, 3, h, w]` to `[f, 2c, h, w]`, those of the silhouettes first."""
        poses, silhouettes = torch.split(frames, [POSE_MAPS, 1], dim=1)
        return torch.cat([self.silhouettes(silhouettes), self.poses(poses)], 1)


class FusedStage(nn.Module):
    """A stage of silhouettes, one of poses, and attention that weighs both in every pixel.

    Args:
        channels: of the maps of either.
        depth: blocks of either.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.silhouettes = stage(ResidualBlock, channels, channels, depth=depth, stride=1)
        self.poses = stage(ResidualBlock, channels, channels, depth=depth, stride=1)
        inner = max(1, channels // SQUEEZE)
        self.attention = nn.Sequential(
            ConvNorm(nn.Conv2d(2 * channels, inner, 1, bias=False)),
            nn.ReLU(inplace=True),
            conv2d(inner, inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, 2 * channels, 1, bias=False),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map what both stems give, `[f, 2c, h, w]`, to `[f, c, h, w]`."""
        silhouettes, poses = maps.chunk(2, dim=1)
        both = torch.cat([self.silhouettes(silhouettes), self.poses(poses)], 1)
        apart = (len(maps), 2, -1, *maps.shape[2:])
        shares = self.attention(both).reshape(apart).softmax(1)
        fused: Tensor = (both.reshape(apart) * shares).sum(1)
        return fused


class SkeletonBackbone(ClipBackbone):
    """A backbone of clips `[n, s, 3, h, w]`: limbs, joints and silhouette of each frame."""

    def frames_of(self, clips: Tensor) -> Tensor:
        """All frames `[n * s, 3, h, w]` of clips."""
        return clips.flatten(0, 1)


def build_skeletongaitpp(config: SkeletonGaitPPConfig) -> GaitNetwork:
    """An untrained SkeletonGait++."""
    width = config.channels[0]
    rest = [
        stage(ResidualBlockP3d, before, after, depth=depth, stride=stride)
        for (before, after), depth, stride in zip(
            pairwise(config.channels), config.layers[1:], STRIDES[1:], strict=True
        )
    ]
    fused = FusedStage(width, config.layers[0])
    return GaitNetwork(config, SkeletonBackbone(TwoStems(width), fused, rest))

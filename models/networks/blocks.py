"""Convolution blocks the backbones are stacked from.

Two layouts of feature maps are used. *Frames* `[f, c, h, w]` are independent images; *clips*
`[n, c, s, h, w]` are n sequences of s consecutive frames. Networks in `channels_last` memory pass
from one to the other without a copy.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Conv = nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm2d | nn.BatchNorm3d


class ConvNorm(nn.Module):
    """A convolution without bias and the batch normalisation behind it."""

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        volumetric = isinstance(conv, nn.Conv3d)
        norm = nn.BatchNorm3d if volumetric else nn.BatchNorm2d
        self.conv: Any = conv  # or a quantised one
        self.norm: Norm | nn.Identity = norm(conv.out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve and normalise frames (or clips, for a 3-D convolution)."""
        normalised: Tensor = self.norm(self.conv(maps))
        return normalised

    def fold(self) -> None:
        """Fold the normalisation into the convolution, for good: inference only, in eval mode.

        Raises:
            ValueError: the module is in training mode.
        """
        if self.training:
            raise ValueError("batch normalisation can only be folded in eval mode")
        if isinstance(self.norm, nn.Identity) or not isinstance(self.conv, Conv):
            return
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


class Shortcut(ConvNorm):
    """A pointwise convolution of every `stride`-th row and column, and the normalisation behind it.

    The pixels are picked before and not by the convolution: the strided pointwise convolution of
    torch 2.13's CPU backward writes outside its memory (a segmentation fault) where few channels
    are laid out last, and is slower wherever it does not.
    """

    def __init__(self, conv: Conv, stride: int) -> None:
        super().__init__(conv)
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve and normalise what is kept of frames or clips."""
        step = slice(None, None, self.stride)
        if self.training:  # picked where channels are last, so that the gradient lies as maps do
            kept = maps.movedim(1, -1)[..., step, step, :].movedim(-1, 1)
        else:  # for that OpenVINO would move the maps themselves
            kept = maps[..., step, step]
        return super().forward(kept)


def of_silhouettes(silhouettes: Tensor) -> Tensor:
    """See silhouettes `[f, h, w]` as frames `[f, 1, h, w]`, and clips likewise, channels last.

    Of one channel only the strides say that, and convolutions go by them.
    """
    return silhouettes.unsqueeze(-1).movedim(-1, 1)


def as_clips(frames: Tensor, clip_length: int) -> Tensor:
    """See frames `[n*s, c, h, w]` as clips `[n, c, s, h, w]`, s = `clip_length`."""
    return frames.reshape(-1, clip_length, *frames.shape[1:]).transpose(1, 2)


def as_frames(clips: Tensor) -> Tensor:
    """See clips `[n, c, s, h, w]` as frames `[n*s, c, h, w]`."""
    return clips.transpose(1, 2).flatten(0, 1)


def max_over_time(clips: Tensor) -> Tensor:
    """Maximum over the frames of clips: `[n, c, s, h, w]` to `[n, c, h, w]`.

    Equal maxima share the gradient evenly. Taken where channels are last, so that it and the
    gradient lie as the clips do.
    """
    return clips.movedim(1, -1).amax(1).movedim(-1, 1)


def conv2d(channels_in: int, channels_out: int, *, stride: int = 1) -> ConvNorm:
    """A 3x3 convolution of frames, padded to keep the size at stride 1."""
    return ConvNorm(nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False))


def conv3d(channels_in: int, channels_out: int, *, stride: int = 1) -> ConvNorm:
    """A 3x3x3 convolution of clips; the stride applies to rows and columns, never to time."""
    strides = (1, stride, stride)
    return ConvNorm(nn.Conv3d(channels_in, channels_out, 3, strides, 1, bias=False))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions of frames around a shortcut (ResNet's basic block, arXiv 1512.03385)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv2d(channels_in, channels_out, stride=stride)
        self.inner = nn.ReLU(inplace=True)
        self.second = conv2d(channels_out, channels_out)
        self.shortcut = _shortcut(nn.Conv2d, channels_in, channels_out, stride)
        self.outer = nn.ReLU(inplace=True)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames `[f, c, h, w]` to `[f, c', h / stride, w / stride]`."""
        maps: Tensor = self.second(self.inner(self.first(frames)))
        rectified: Tensor = self.outer(maps + self.shortcut(frames))
        return rectified


class ResidualBlockP3d(nn.Module):
    """A basic block whose first convolution is followed by a residual one over time alone.

    Pseudo-3-D convolution (arXiv 1711.10305) as DeepGaitV2 arranges it (arXiv 2303.03301). Every
    convolution is a 2-D one: that over time sees rows and columns as one axis.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv2d(channels_in, channels_out, stride=stride)
        self.inner = nn.ReLU(inplace=True)
        self.temporal = ConvNorm(
            nn.Conv2d(channels_out, channels_out, (3, 1), padding=(1, 0), bias=False)
        )
        self.mixed = nn.ReLU(inplace=True)
        self.second = conv2d(channels_out, channels_out)
        self.shortcut = _shortcut(nn.Conv2d, channels_in, channels_out, stride)
        self.outer = nn.ReLU(inplace=True)

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips `[n, c, s, h, w]` to `[n, c', s, h / stride, w / stride]`."""
        clip_length = clips.shape[2]
        frames = as_frames(clips)
        maps = as_clips(self.inner(self.first(frames)), clip_length)
        mixed = self.temporal(maps.flatten(3)).view_as(maps)
        maps = self.second(as_frames(self.mixed(maps + mixed)))
        return as_clips(self.outer(maps + self.shortcut(frames)), clip_length)


class ResidualBlock3d(nn.Module):
    """Two 3x3x3 convolutions of clips around a shortcut; time is never strided."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv3d(channels_in, channels_out, stride=stride)
        self.inner = nn.ReLU(inplace=True)
        self.second = conv3d(channels_out, channels_out)
        self.shortcut = _shortcut(nn.Conv3d, channels_in, channels_out, stride)
        self.outer = nn.ReLU(inplace=True)

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips `[n, c, s, h, w]` to `[n, c', s, h / stride, w / stride]`."""
        maps: Tensor = self.second(self.inner(self.first(clips)))
        rectified: Tensor = self.outer(maps + self.shortcut(clips))
        return rectified


Block = type[ResidualBlock] | type[ResidualBlockP3d] | type[ResidualBlock3d]


def stage(
    block: Block, channels_in: int, channels_out: int, *, depth: int, stride: int
) -> nn.Sequential:
    """`depth` blocks, of which the first changes the width and the size."""
    first = block(channels_in, channels_out, stride)
    return nn.Sequential(first, *(block(channels_out, channels_out, 1) for _ in range(depth - 1)))


def fold_batch_norm(network: nn.Module) -> None:
    """Fold every convolution's batch normalisation into it, in place: inference only.

    Raises:
        ValueError: the network is in training mode.
    """
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.fold()


def _shortcut(
    conv: type[nn.Conv2d | nn.Conv3d], channels_in: int, channels_out: int, stride: int
) -> Shortcut | nn.Identity:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return Shortcut(conv(channels_in, channels_out, 1, bias=False), stride)

"""Convolutions of whole numbers: what a network's backbone becomes when it is quantised.

Kernels are signed and maps unsigned whole numbers of 8 bits, each standing for itself times a
scale: one for each channel that a kernel gives, and one for each tensor of maps. Torch computes
with the numbers that they stand for (`fake_quantize`, so on any device); OpenVINO recognises the
pattern and computes with the whole numbers themselves, in a third of the time. The
maps that are pooled stay float32, as does the head, and so do the sums of residual blocks.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import Conv, ConvNorm
from models.networks.network import GaitNetwork

MOST: Final = 127  # of a kernel's whole numbers, and -127 the least: as many to either side
MOST_UNSIGNED: Final = 255  # of a map's


class QuantisedConv(nn.Module):
    """A convolution whose kernel is of whole numbers, and its bias.

    Attributes:
        weight: int8 `[c_out, c_in, …]`.
        scale: float32 `[c_out]`, what 1 stands for.
        bias: float32 `[c_out]`.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.stride, self.padding = conv.stride, conv.padding
        self._convolve = functional.conv3d if isinstance(conv, nn.Conv3d) else functional.conv2d
        self.register_buffer("weight", torch.zeros_like(conv.weight, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(conv.out_channels))
        self.register_buffer("bias", torch.zeros(conv.out_channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve maps with the numbers that the kernel stands for."""
        scale = self.scale.view(-1, *[1] * (self.weight.ndim - 1))
        zeros = torch.zeros_like(self.scale, dtype=torch.int32)
        # changes no number: it is how OpenVINO knows a kernel that it can keep in whole ones
        kernel = torch.fake_quantize_per_channel_affine(
            self.weight * scale, self.scale, zeros, 0, -MOST, MOST
        )
        convolved: Tensor = self._convolve(maps, kernel, self.bias, self.stride, self.padding)
        return convolved


class QuantisedReLU(nn.Module):
    """Rounds maps to multiples of a scale, from none to 255 of them, which rectifies them too.

    Attributes:
        scale: float32, of the tensor.
    """

    scale: Tensor

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, maps: Tensor) -> Tensor:
        """Rectify and round."""
        zero = torch.zeros_like(self.scale, dtype=torch.int32)
        return torch.fake_quantize_per_tensor_affine(maps, self.scale, zero, 0, MOST_UNSIGNED)


def make_room_for_whole_numbers(network: GaitNetwork) -> None:
    """Replace the backbone's layers, in place, by quantised ones that are still to be filled."""
    network.backbone.entry = QuantisedReLU(1 / MOST_UNSIGNED)  # exact: frames are of bytes
    (*_, last_block) = network.backbone.last_stage.children()
    for module in list(network.backbone.modules()):
        if isinstance(module, ConvNorm) and isinstance(module.conv, Conv):
            module.conv, module.norm = QuantisedConv(module.conv), nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU) and child is not last_block.outer:
                setattr(module, name, QuantisedReLU())

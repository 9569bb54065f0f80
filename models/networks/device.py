"""Where networks run, in which precision, and the layout of their weights in memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


class NoSuchDevice(ValueError):
    """A device that this machine, or this build of torch, does not have."""


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU if there is one.

    From then on float32 is float32 in this process: left alone, a GPU's convolutions would round
    what they read to the 10 bits of TF32, and embeddings of float32 would be off by 1e-3.

    Raises:
        NoSuchDevice: it is not there.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise NoSuchDevice(f"device {name!r} is not available: {reason}") from error
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


@dataclass(frozen=True)
class MixedPrecision:
    """What convolutions and matrix products compute in; weights and losses stay float32."""

    device: torch.device
    half: bool

    @classmethod
    def choose(
        cls, setting: Literal["auto", "bf16", "fp32"], device: torch.device
    ) -> MixedPrecision:
        """bf16 where the machine has instructions for it, unless the recipe decides."""
        if setting != "auto":
            return cls(device, setting == "bf16")
        return cls(device, computes_bfloat16(device))

    @property
    def name(self) -> str:
        """For cards."""
        return "bf16" if self.half else "fp32"

    def autocast(self) -> AbstractContextManager[object]:
        """Within, products run in the chosen precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)


def lay_out_for_convolution(network: nn.Module) -> None:
    """Channels last for every convolution's weights, and so for its maps: the fastest in bf16.

    Unlike torch's converters it leaves weights that lie in both formats (1 x 1 kernels) alone:
    other strides choose other kernels, and a training would end in other last digits.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)

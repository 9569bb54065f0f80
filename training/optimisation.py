"""How weights move: precision, memory layout, optimiser, learning rate, moving average."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import nn
from torch.optim import Optimizer

from models.networks.network import GaitNetwork
from training.recipe import SGD, AdamW, Cosine, MultiStep


@dataclass(frozen=True)
class Precision:
    """What convolutions and matrix products compute in; weights and losses stay float32."""

    device: torch.device
    half: bool

    @classmethod
    def choose(cls, setting: Literal["auto", "bf16", "fp32"], device: torch.device) -> Precision:
        """bf16 where the machine has instructions for it, unless the recipe decides."""
        if setting != "auto":
            return cls(device, setting == "bf16")
        if device.type == "cuda":
            return cls(device, torch.cuda.is_bf16_supported(including_emulation=False))
        can = torch.cpu.get_capabilities()
        return cls(device, bool(can.get("avx512_bf16") or can.get("amx_bf16")))

    @property
    def name(self) -> str:
        """For cards."""
        return "bf16" if self.half else "fp32"

    def autocast(self) -> AbstractContextManager[object]:
        """Within, products run in the chosen precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)


def lay_out_for_convolution(network: nn.Module) -> None:
    """Channels last for every convolution's weights, and so for its maps: the fastest in bf16."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)


def make_optimiser(settings: SGD | AdamW, network: nn.Module) -> Optimizer:
    """The optimiser, in its fused form. Decay applies to every weight, as in the field."""
    weights = [w for w in network.parameters() if w.requires_grad]
    match settings:
        case SGD():
            return torch.optim.SGD(
                weights,
                lr=settings.learning_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                nesterov=settings.nesterov,
                fused=True,
            )
        case AdamW():
            return torch.optim.AdamW(
                weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
            )
        case _:
            assert_never(settings)


def rate_factor(schedule: MultiStep | Cosine, step: int, steps: int) -> float:
    """What multiplies the learning rate in a step (from 0): a function of the step alone."""
    if step < schedule.warm_up:
        return (step + 1) / (schedule.warm_up + 1)
    match schedule:
        case MultiStep():
            return schedule.factor ** sum(step >= m for m in schedule.milestones)
        case Cosine():
            along = (step - schedule.warm_up) / (steps - schedule.warm_up)
            return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * along)) / 2
        case _:
            assert_never(schedule)


def set_rate(optimiser: Optimizer, rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimiser.param_groups:
        group["lr"] = rate


class MovingAverage:
    """An exponential moving average of a network's weights and batch statistics.

    Early on the average follows faster ((1 + step) / (10 + step)), or the random start would stay
    in it.

    Args:
        followed: the network in training.
        average: a network of the same build, which comes to hold the average.
        decay: share of the old average that a step keeps, in the long run.
    """

    def __init__(self, followed: GaitNetwork, average: GaitNetwork, decay: float) -> None:
        average.requires_grad_(False)
        average.load_state_dict(followed.state_dict())
        self.network = average
        self._decay = decay
        current, averaged = followed.state_dict(), average.state_dict()
        floating = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
        self._current = [current[name] for name in floating]
        self._averaged = [averaged[name] for name in floating]
        # Batch counters are whole numbers: the latest is as good as any.
        self._counters = [(averaged[n], current[n]) for n in averaged.keys() - set(floating)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average after a step."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)
        for mine, theirs in self._counters:
            mine.copy_(theirs)

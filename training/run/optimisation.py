"""How weights move: precision, memory layout, optimiser, learning rate, moving average."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import nn
from torch.optim import Optimizer

from models.networks.network import GaitNetwork
from training.recipe import SGD, AdamW, Cosine, MultiStep


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

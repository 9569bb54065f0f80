"""How weights move: precision, memory layout, optimiser, learning rate, moving average."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import PARAM_LIST, AveragedModel

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


def moving_average(followed: GaitNetwork, decay: float) -> AveragedModel:
    """An exponential moving average of a network's weights and batch statistics.

    Early on the average follows faster (decay (1 + step) / (10 + step)), or the random start would
    stay in it.

    Args:
        followed: the network in training; its state is where the average starts.
        decay: share of the old average that a step keeps, in the long run.

    Returns:
        The average, a network of its own in `.module`; `update_parameters` moves it after a step.
    """

    @torch.no_grad()
    def move(mine: PARAM_LIST, theirs: PARAM_LIST, _: Tensor | int) -> None:
        if not mine[0].is_floating_point():  # batch counters: the latest is as good as any
            torch._foreach_copy_(mine, theirs)
            return
        count = int(average.n_averaged)  # kept on the CPU, so that no step waits for a GPU
        torch._foreach_lerp_(mine, theirs, 1 - min(decay, count / (9 + count)))

    average = AveragedModel(followed, multi_avg_fn=move, use_buffers=True)
    average.requires_grad_(False)
    average.n_averaged += 1  # the start
    return average

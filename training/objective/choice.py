"""Which teacher teaches: all, or one of them by the clock, by merit or by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks.head import GaitOutput
from training.objective.losses import LOGIT_SCALE
from training.recipe import Distillation

_STREAM = 7  # of random numbers; sampling and augmentation have others


def square_wave(step: int, *, period: int, duty: float) -> bool:
    """Whether the first of two teachers teaches (ASDT, 2112.09459): in the first part of a period.

    Args:
        step: steps done.
        period: steps of a period.
        duty: the first part's share.
    """
    return step % period < duty * period


def shares(settings: Distillation, teachers: int, step: int, seed: int) -> list[float]:
    """What multiplies each teacher's terms in a step, where it does not depend on the walk.

    Args:
        settings: of the recipe.
        teachers: their number.
        step: steps done.
        seed: of the recipe.

    Raises:
        ValueError: alternating with another number than two.
    """
    match settings.teachers:
        case "mean":
            return [1 / teachers] * teachers
        case "alternate":
            if teachers != 2:
                raise ValueError(f"alternating takes two teachers, not {teachers}")
            first = square_wave(step, period=settings.period, duty=settings.duty)
            return [float(first), float(not first)]
        case "random":
            # Of seed and step alone, so that all processes, and a run that goes on, draw the same.
            chosen = np.random.default_rng([_STREAM, seed, step]).integers(teachers)
            return [float(number == chosen) for number in range(teachers)]
        case _:
            return [1.0] * teachers


def best_teacher(teachers: Sequence[GaitOutput], labels: Tensor) -> Tensor:
    """Of each walk the teacher with the lowest cross-entropy, mean over its parts: int64 [n].

    Args:
        teachers: logits [n, k, p'] each; numbers of parts may differ.
        labels: [n] integer identities.
    """
    losses = []
    for teacher in teachers:
        log_probabilities = F.log_softmax(teacher.logits.float() * LOGIT_SCALE, dim=1)
        losses.append(-log_probabilities.mean(dim=2).gather(1, labels.unsqueeze(1)).squeeze(1))
    return torch.stack(losses).argmin(dim=0)

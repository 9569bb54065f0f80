"""Logit distillation: the teacher's softened identity distribution, part by part."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from training.objective.distillation.alignment import require_equal, require_positive
from training.objective.losses import LOGIT_SCALE


def logit_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    standardise: bool = False,
    scale: float = LOGIT_SCALE,
) -> Tensor:
    """KL divergence between softened identity distributions: GaitKD's decision term.

    Both logits are cosines and share one scale, every part counts alike, and the usual temperature²
    keeps the gradient's size independent of the temperature (Hinton et al., 1503.02531; GaitKD,
    2604.26255).

    Args:
        student: logits [n, k, p].
        teacher: logits [n, k, p]; no gradient flows into them.
        temperature: softening, > 0.
        standardise: each row of logits has mean 0 and variance 1 over the identities first, instead
            of the scale (LSKD, Sun et al., 2403.01427): the student may be as sure as it likes.
        scale: multiplies both logits before the temperature divides them.

    Returns:
        A scalar: the mean over sequences and parts.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    require_equal(student, teacher, "logits")
    require_positive(temperature, "temperature")
    own, taught, sharpness = student.float(), teacher.detach().float(), scale / temperature
    if standardise:
        own, taught, sharpness = _standardised(own), _standardised(taught), 1 / temperature
    log_student = F.log_softmax(own * sharpness, dim=1)
    log_teacher = F.log_softmax(taught * sharpness, dim=1)
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=1)
    return divergence.mean() * temperature**2


def _standardised(logits: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the identities, of each sequence and part."""
    spread = logits.std(dim=1, keepdim=True, correction=0)
    return (logits - logits.mean(dim=1, keepdim=True)) / spread.clamp(min=1e-7)


def logit_regression(student: Tensor, teacher: Tensor, *, scale: float = LOGIT_SCALE) -> Tensor:
    """Mean squared difference of scaled logits: logit distillation at an infinite temperature.

    Args:
        student: logits [n, k, p].
        teacher: logits [n, k, p]; no gradient flows into them.
        scale: multiplies both.

    Returns:
        A scalar: the mean over sequences, identities and parts (Kim et al., 2021).

    Raises:
        ValueError: the shapes differ.
    """
    require_equal(student, teacher, "logits")
    return F.mse_loss(student.float() * scale, teacher.detach().float() * scale)

"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, 2203.08679)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.distillation.alignment import require_equal, require_positive
from training.objective.losses import LOGIT_SCALE


def decoupled_distillation(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    target_weight: float = 1.0,
    rest_weight: float = 8.0,
    scale: float = LOGIT_SCALE,
) -> Tensor:
    """How sure of the true identity, and how the others rank, as two weighted terms.

    Plain logit distillation weighs the second by 1 - p(true), which is what makes it fade when the
    teacher is sure; here the weight is chosen.

    Args:
        student: logits [n, k, p], k ≥ 3.
        teacher: logits [n, k, p]; no gradient flows into them.
        labels: [n] integer identities.
        temperature: softening, > 0.
        target_weight: weight of the divergence of (true, any other).
        rest_weight: weight of the divergence among the other identities.
        scale: multiplies both logits.

    Returns:
        A scalar: the mean over sequences and parts, times temperature².

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    require_equal(student, teacher, "logits")
    require_positive(temperature, "temperature")
    sharpness = scale / temperature
    # [n, p, k], so that the identities of one (sequence, part) lie in one row
    own = (student.float() * sharpness).transpose(1, 2)
    taught = (teacher.detach().float() * sharpness).transpose(1, 2)
    true = F.one_hot(labels, own.shape[2]).bool().unsqueeze(1).expand_as(own)

    own_target, own_rest = _split(own, true)
    taught_target, taught_rest = _split(taught, true)
    target = (taught_target.exp() * (taught_target - own_target)).sum(dim=-1)
    rest = (taught_rest.exp() * (taught_rest - own_rest)).sum(dim=-1)
    return (target_weight * target + rest_weight * rest).mean() * temperature**2


def _split(logits: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (true, any other) [n, p, 2] and among the others [n, p, k - 1]."""
    n, parts, identities = logits.shape
    rest = logits[~true].reshape(n, parts, identities - 1)
    # logsumexp of the others instead of log(1 - p): exact where the teacher is all but certain
    pair = torch.stack((logits[true].reshape(n, parts), rest.logsumexp(dim=-1)), dim=-1)
    return F.log_softmax(pair, dim=-1), F.log_softmax(rest, dim=-1)

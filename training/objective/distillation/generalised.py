"""Generalised decoupled knowledge distillation (GDKD, 2512.04625)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.distillation.alignment import require_equal, require_positive
from training.objective.lesson import Lesson, Method, temperature_of
from training.objective.losses import LOGIT_SCALE
from training.recipe.terms import GeneralisedTerm


def generalised_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    top: int,
    shared: bool,
    temperature: float,
    group_weight: float = 1.0,
    top_weight: float = 1.0,
    rest_weight: float = 4.0,
    scale: float = LOGIT_SCALE,
) -> Tensor:
    """Logit distillation split by whom the teacher finds likeliest, not by the label.

    Three divergences, teacher first: between the two groups' probabilities, within the likeliest,
    and within the rest.

    Args:
        student: logits [n, k, p].
        teacher: logits [n, k, p]; no gradient flows into them.
        top: size of the first group, less than k.
        shared: the group is one of the sequence, by the mean over parts of the teacher's logits, so
            that all parts compare the same identities; otherwise each part has its own.
        temperature: softening, > 0.
        group_weight: weight of the divergence between the groups.
        top_weight: weight of the one within the likeliest.
        rest_weight: weight of the one within the rest.
        scale: multiplies both logits.

    Returns:
        A scalar: the mean over sequences and parts, times temperature².

    Raises:
        ValueError: the shapes differ, `top` leaves no rest, or the temperature is not positive.
    """
    require_equal(student, teacher, "logits")
    require_positive(temperature, "temperature")
    if not 0 < top < student.shape[1]:
        raise ValueError(f"of {student.shape[1]} identities, {top} likeliest leave no rest")
    sharpness = scale / temperature
    # [n, p, k], so that the identities of one (sequence, part) lie in one row
    own = (student.float() * sharpness).transpose(1, 2)
    taught = (teacher.detach().float() * sharpness).transpose(1, 2)
    judged = taught.mean(dim=1, keepdim=True).expand_as(taught) if shared else taught
    # The groups as indices: nothing is masked, so no probability has to be clamped.
    order = judged.argsort(dim=-1, descending=True, stable=True)
    divergences = []
    own_groups, taught_groups = [], []
    for chosen in (order[..., :top], order[..., top:]):
        own_group, taught_group = own.gather(-1, chosen), taught.gather(-1, chosen)
        divergences.append(_divergence(own_group, taught_group))
        own_groups.append(own_group.logsumexp(dim=-1))
        taught_groups.append(taught_group.logsumexp(dim=-1))
    groups = _divergence(torch.stack(own_groups, dim=-1), torch.stack(taught_groups, dim=-1))
    of_top, of_rest = divergences
    total = group_weight * groups + top_weight * of_top + rest_weight * of_rest
    return total.mean() * temperature**2


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) over the last axis of logits: [n, p]."""
    log_student, log_teacher = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1)


class Generalised(Method[GeneralisedTerm]):
    """The term of a recipe, with its warm-up."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences."""
        term = self.term
        own, taught = lesson.aligned(lesson.student.logits, lesson.teacher.logits)
        return lesson.warmth(term.warm_up) * generalised_distillation(
            own,
            taught,
            top=term.top,
            shared=term.shared,
            temperature=temperature_of(term.temperature, own, term.scale),
            group_weight=term.group_weight,
            top_weight=term.top_weight,
            rest_weight=term.rest_weight,
            scale=term.scale,
        )

"""Cross-view consistency with gates (CRLD, 2412.16493): weak and strong views of one clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.distillation.alignment import require_equal
from training.objective.lesson import PLAIN, STRONG, Lesson, Method, temperature_of
from training.objective.losses import LOGIT_SCALE
from training.recipe.terms import ViewsTerm


def gated_distillation(
    student: Tensor,
    teacher: Tensor,
    gate: Tensor,
    *,
    temperature: float,
    scale: float = LOGIT_SCALE,
) -> Tensor:
    """Logit distillation of the (sequence, part) rows that a gate lets through.

    Args:
        student: logits [n, k, p].
        teacher: logits [n, k, p]; no gradient flows into them.
        gate: [n, p], 1 or 0.
        temperature: softening, > 0.
        scale: multiplies both logits.

    Returns:
        A scalar: the mean over all n · p rows, those outside counting 0, times temperature².

    Raises:
        ValueError: the shapes differ.
    """
    require_equal(student, teacher, "logits")
    sharpness = scale / temperature
    log_student = F.log_softmax(student.float() * sharpness, dim=1)
    log_teacher = F.log_softmax(teacher.detach().float() * sharpness, dim=1)
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=1)
    return (divergence * gate).mean() * temperature**2


def confident(teacher: Tensor, threshold: float, *, scale: float = LOGIT_SCALE) -> Tensor:
    """Where a teacher's largest probability, at temperature 1, reaches a threshold: [n, p], 1 or 0.

    Args:
        teacher: logits [n, k, p].
        threshold: in [0, 1].
        scale: multiplies the logits.
    """
    surest = F.softmax(teacher.detach().float() * scale, dim=1).amax(dim=1)
    return (surest >= threshold).float()


def embedding_consistency(student: Tensor, teacher: Tensor, gate: Tensor) -> Tensor:
    """Squared distance between embeddings of unit length, part by part.

    Args:
        student: [n, c, p], of the strong view.
        teacher: [n, c, p], of the weak view; no gradient flows into it.
        gate: [n, p], 1 or 0.

    Returns:
        A scalar: the mean over all n · p rows, those outside counting 0.

    Raises:
        ValueError: the shapes differ.
    """
    require_equal(student, teacher, "embeddings")
    own = F.normalize(student.float(), dim=1)
    taught = F.normalize(teacher.detach().float(), dim=1)
    return ((own - taught).square().sum(dim=1) * gate).mean()


def whole_parts(lost: Tensor, parts: int) -> Tensor:
    """Which parts have lost none of their rows: [n, p], 1 or 0.

    Args:
        lost: bool [n, rows].
        parts: strips of equal height.
    """
    rows = lost.shape[1]
    row, part = torch.arange(rows).unsqueeze(0), torch.arange(parts).unsqueeze(1)
    # Row r covers [r, r + 1) · parts of a height of rows · parts; the part its own `rows` of them.
    touches = (row * parts < (part + 1) * rows) & ((row + 1) * parts > part * rows)
    found = lost.float() @ touches.to(lost.device).float().T
    return (found == 0).float()


class Views(Method[ViewsTerm]):
    """The term of a recipe.

    As in the published code, the weak view's gate decides about both terms within a view and the
    strong view's about both across. A part with erased rows teaches nothing that involves the
    strong view of the student or of the teacher.
    """

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences."""
        term, scale = self.term, self.term.scale
        weak, strong = lesson.seen_as(PLAIN), lesson.seen_as(STRONG)
        own_weak, taught_weak = lesson.aligned(weak.student.logits, weak.teacher.logits)
        own_strong, taught_strong = lesson.aligned(strong.student.logits, strong.teacher.logits)
        sure = confident(taught_weak, term.weak_gate, scale=scale)
        sure_across = confident(taught_strong, term.strong_gate, scale=scale)
        whole = torch.ones_like(sure)
        if lesson.lost is not None:
            whole = whole_parts(lesson.lost, weak.student.logits.shape[-1])[:, : sure.shape[1]]

        temperature = temperature_of(term.temperature, own_weak, scale)

        def distil(own: Tensor, taught: Tensor, gate: Tensor) -> Tensor:
            return gated_distillation(own, taught, gate, temperature=temperature, scale=scale)

        within = distil(own_weak, taught_weak, sure) + distil(
            own_strong, taught_strong, sure * whole
        )
        across = distil(own_strong, taught_weak, sure_across * whole) + distil(
            own_weak, taught_strong, sure_across * whole
        )
        total = term.within_weight * within + term.across_weight * across
        if term.embedding_weight:
            embeddings = lesson.aligned(
                strong.own(connector=term.connector), weak.teacher.embeddings
            )
            total = total + term.embedding_weight * embedding_consistency(*embeddings, whole)
        return total

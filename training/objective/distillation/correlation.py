"""DIST (2205.10536): the student's probabilities correlate with the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from training.objective.distillation.alignment import require_equal, require_positive
from training.objective.lesson import Lesson, Method, temperature_of
from training.objective.losses import LOGIT_SCALE
from training.recipe.terms import CorrelationTerm


def correlation_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    between_weight: float = 2.0,
    within_weight: float = 2.0,
    scale: float = LOGIT_SCALE,
) -> Tensor:
    """One minus Pearson's correlation of softened probabilities, of rows and of columns.

    A row is one sequence's identities; a column is one identity's probability over the sequences
    of the batch, in one part.

    Args:
        student: logits [n, k, p], n ≥ 2.
        teacher: logits [n, k, p]; no gradient flows into them.
        temperature: softening, > 0.
        between_weight: of the rows.
        within_weight: of the columns.
        scale: multiplies both logits.

    Returns:
        A scalar: means over rows and over columns, times temperature².

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    require_equal(student, teacher, "logits")
    require_positive(temperature, "temperature")
    own = F.softmax(student.float() * (scale / temperature), dim=1)
    taught = F.softmax(teacher.detach().float() * (scale / temperature), dim=1)
    between = 1 - _pearson(own, taught, dim=1).mean()
    within = 1 - _pearson(own, taught, dim=0).mean()
    return (between_weight * between + within_weight * within) * temperature**2


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    centred = a - a.mean(dim=dim, keepdim=True), b - b.mean(dim=dim, keepdim=True)
    return F.cosine_similarity(*centred, dim=dim, eps=1e-8)


class Correlation(Method[CorrelationTerm]):
    """The term of a recipe."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Over the sequences of all processes."""
        term = self.term
        own, taught = lesson.aligned(
            lesson.everyone(lesson.student.logits), lesson.everyone(lesson.teacher.logits)
        )
        return correlation_distillation(
            own,
            taught,
            temperature=temperature_of(term.temperature, own, term.scale),
            between_weight=term.between_weight,
            within_weight=term.within_weight,
            scale=term.scale,
        )

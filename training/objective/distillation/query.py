"""Query-based soft distillation (GKD, 2603.02554): the teacher's parts ask the student's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.objective.lesson import MASKED, Lesson, Method, Networks
from training.recipe.terms import QueryTerm


class Reconstruction(nn.Module):
    """The teacher's parts rebuilt from the student's: attention whose values are the student's.

    A = softmax over p of (e' W_q)(e W_k)ᵀ / √d, and r = A (e W_v). The teacher gives the questions
    alone, so numbers of parts and widths may differ.

    Args:
        channels: c, of the student.
        teacher_channels: c', of the teacher.
        width: d, of queries and keys.
    """

    def __init__(self, channels: int, teacher_channels: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(teacher_channels, width, bias=False)
        self.key = nn.Linear(channels, width, bias=False)
        self.value = nn.Linear(channels, teacher_channels, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings [n, c, p] and [n, c', p'] to the teacher's, rebuilt: [n, c', p']."""
        own, asked = student.float().transpose(1, 2), teacher.detach().float().transpose(1, 2)
        query, key, value = self.query(asked), self.key(own), self.value(own)
        attention = F.softmax(query @ key.transpose(1, 2) * key.shape[-1] ** -0.5, dim=-1)
        rebuilt: Tensor = (attention @ value).transpose(1, 2)
        return rebuilt


def rebuilt_error(rebuilt: Tensor, teacher: Tensor, unit: Tensor) -> Tensor:
    """Mean squared difference, in units of the teacher's mean square.

    Args:
        rebuilt: [n, c', p'].
        teacher: [n, c', p']; no gradient flows into it.
        unit: a scalar, the mean square of the teacher's coordinates.
    """
    return F.mse_loss(rebuilt, teacher.detach().float()) / unit.clamp(min=1e-12)


def mean_part_error(rebuilt: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine between the means over parts, averaged over sequences.

    Args:
        rebuilt: [n, c', p'].
        teacher: [n, c', p']; no gradient flows into it.
    """
    means = rebuilt.mean(dim=2), teacher.detach().float().mean(dim=2)
    return 1 - F.cosine_similarity(*means, dim=1).mean()


class Query(Method[QueryTerm]):
    """The term of a recipe. The masked view is rebuilt into the teacher's view of the whole clip.

    The attention has seen the teacher, so r can match while e does not: a recipe needs a direct
    term (hint, ranking) beside this one.
    """

    def __init__(self, term: QueryTerm, networks: Networks) -> None:
        super().__init__(term, networks)
        student, teachers = networks
        self.rebuild = nn.ModuleList(
            Reconstruction(student.channels, teacher.channels, term.width) for teacher in teachers
        )

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences; the unit is that of all processes."""
        term, taught = self.term, lesson.teacher.embeddings
        rebuild = self.rebuild[lesson.number]
        unit = lesson.everyone(taught).detach().float().square().mean()
        rebuilt = rebuild(lesson.student.embeddings, taught)
        total = term.part_weight * rebuilt_error(rebuilt, taught, unit)
        total = total + term.mean_weight * mean_part_error(rebuilt, taught)
        if term.masked_weight:
            masked = rebuild(lesson.seen_as(MASKED).student.embeddings, taught)
            total = total + term.masked_weight * rebuilt_error(masked, taught, unit)
        return total

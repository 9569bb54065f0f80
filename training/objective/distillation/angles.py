"""Relational knowledge distillation (RKD, 1904.05068): distances and angles within a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.distances import others, part_distances
from training.objective.distillation.alignment import align_parts
from training.objective.lesson import Lesson, Method
from training.recipe.terms import AnglesTerm


def relational_distillation(
    student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Huber difference of distances in units of their mean, and of the angles of all triples.

    Args:
        student: embeddings [n, c, p], n ≥ 3.
        teacher: embeddings [n, c', p'], any width and number of parts; no gradient flows into them.
        distance_weight: of distances.
        angle_weight: of the cosines of the angles at each sequence to every two others; n³ numbers.

    Returns:
        A scalar: means over pairs and triples, each a mean over parts.

    Raises:
        ValueError: the numbers of sequences differ, or n < 3.
    """
    if student.shape[0] != teacher.shape[0] or student.shape[0] < 3:
        raise ValueError(
            "angles need the same three or more sequences of both, got "
            f"{student.shape[0]} and {teacher.shape[0]}"
        )
    parts = student.shape[-1]
    total = student.new_zeros((), dtype=torch.float32)
    if distance_weight:
        own, taught = _unit(part_distances(student)), part_distances(teacher.detach())
        taught = _unit(_aligned(taught, parts))
        total = total + distance_weight * F.huber_loss(own, taught)
    if angle_weight:
        own, taught = _angles(student), _aligned(_angles(teacher.detach()), parts)
        total = total + angle_weight * F.huber_loss(own, taught)
    return total


def _aligned(found: Tensor, parts: int) -> Tensor:
    """[p', …] mixed to [p, …] by overlap."""
    return align_parts(found.movedim(0, -1), parts).movedim(-1, 0)


def _unit(distances: Tensor) -> Tensor:
    """Each pair [p, n, n - 1] in units of the part's mean."""
    off_diagonal = others(distances)
    return off_diagonal / off_diagonal.mean(dim=(1, 2), keepdim=True).clamp(min=1e-6)


def _angles(embeddings: Tensor) -> Tensor:
    """Cosine at i of the angle between j and k: [p, n, n, n], 0 where two of them are one."""
    rows = embeddings.float().permute(2, 0, 1)
    towards = F.normalize(rows.unsqueeze(1) - rows.unsqueeze(2), dim=-1)  # [p, i, j, c]
    return towards @ towards.transpose(2, 3)


class Angles(Method[AnglesTerm]):
    """The term of a recipe."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Over the sequences of all processes."""
        return relational_distillation(
            lesson.everyone(lesson.student.embeddings),
            lesson.everyone(lesson.teacher.embeddings),
            distance_weight=self.term.distance_weight,
            angle_weight=self.term.angle_weight,
        )

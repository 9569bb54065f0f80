"""Ranking distillation: whom the teacher finds near whom.

Needs no common width, basis, head or identities.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from training.objective.distances import others, part_distances
from training.objective.distillation.alignment import align_parts, require_positive


def ranking_distillation(
    student: Tensor, teacher: Tensor, *, temperature: float = 0.1, per_part: bool = True
) -> Tensor:
    """KL divergence between two networks' soft nearest-neighbour rankings of a batch.

    R(j | i) = softmax over j ≠ i of -D_ij / (temperature · mean D), D the mean over parts of the
    part's distance: the field's test distance. Dividing by each network's own mean makes the term
    blind to scale, and distances are blind to rotation.

    Args:
        student: embeddings [n, c, p], n ≥ 3.
        teacher: embeddings [n, c', p'], any width and number of parts; no gradient flows into them.
        temperature: how far down the ranking counts; smaller is nearer.
        per_part: add the same divergence part by part, the teacher's part distances mixed by
            overlap.

    Returns:
        A scalar: the mean over anchors (and parts); both halves are added when `per_part`.

    Raises:
        ValueError: the numbers of sequences differ, n < 3 or the temperature is not positive.
    """
    require_positive(temperature, "temperature")
    if student.shape[0] != teacher.shape[0] or student.shape[0] < 3:
        raise ValueError(
            "a ranking needs the same three or more sequences of both, got "
            f"{student.shape[0]} and {teacher.shape[0]}"
        )
    own = part_distances(student)  # [p, n, n]
    taught = part_distances(teacher.detach())  # [p', n, n]
    loss = _divergence(own.mean(dim=0, keepdim=True), taught.mean(dim=0, keepdim=True), temperature)
    if per_part:
        aligned = align_parts(taught.permute(1, 2, 0), own.shape[0]).permute(2, 0, 1)
        loss = loss + _divergence(own, aligned, temperature)
    return loss


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over [p, n] of KL(teacher ‖ student) between rankings made from distances [p, n, n]."""
    log_student, log_teacher = (
        _log_ranking(student, temperature),
        _log_ranking(teacher, temperature),
    )
    return F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=-1).mean()


def _log_ranking(distances: Tensor, temperature: float) -> Tensor:
    off_diagonal = others(distances)
    unit = off_diagonal.mean(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    return F.log_softmax(-off_diagonal / (temperature * unit), dim=-1)

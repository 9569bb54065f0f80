"""What a student's and a teacher's tensors must agree on: checks, and the alignment of parts."""

from __future__ import annotations

import torch
from torch import Tensor

from models.networks.pooling import strip_bounds


def overlap_matrix(student_parts: int, teacher_parts: int) -> Tensor:
    """Which share of each student strip every teacher strip covers.

    Both networks cut the full height into strips of equal height, head first; with 62 parts, into
    two pyramids of them (`models.networks.pooling.strip_bounds`), where a strip is covered ten
    times, and every time counts alike.

    Args:
        student_parts: p, number of the student's strips.
        teacher_parts: p', number of the teacher's strips.

    Returns:
        [p, p'] float32: |student strip ∩ teacher strip|, of each student strip in sum 1; equal
        numbers of parts give the identity.

    Raises:
        ValueError: a number of parts is not positive.
    """
    if student_parts < 1 or teacher_parts < 1:
        raise ValueError(f"parts must be positive, got {student_parts} and {teacher_parts}")
    if student_parts == teacher_parts:
        return torch.eye(student_parts)
    own, height = strip_bounds(student_parts)
    others, other_height = strip_bounds(teacher_parts)
    # Heights in units of which every border is a whole number: no rounding in the overlap.
    top, bottom = (torch.tensor(own) * other_height).unsqueeze(1).unbind(-1)
    other_top, other_bottom = (torch.tensor(others) * height).unsqueeze(0).unbind(-1)
    shared = torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)
    covered = shared.clamp(min=0).float()
    return covered / covered.sum(dim=1, keepdim=True)


def align_parts(teacher: Tensor, student_parts: int) -> Tensor:
    """A teacher's parts mixed into the student's strips by how much they overlap.

    Mixing logits mixes log-probabilities: the softmax of the mixture is the normalised geometric
    mean of the mixed parts' distributions, at every temperature.

    Args:
        teacher: […, p'], parts last: embeddings, logits or distances.
        student_parts: p.

    Returns:
        […, p]; the tensor itself when the numbers agree.
    """
    if teacher.shape[-1] == student_parts:
        return teacher
    overlap = overlap_matrix(student_parts, teacher.shape[-1]).to(teacher.device)
    return teacher.float() @ overlap.T


def truncate_parts(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors cut to their first min(p, p') parts, as GaitKD does.

    Index i meets index i, whether the strips overlap or not.

    Args:
        student: […, p].
        teacher: […, p'].
    """
    parts = min(student.shape[-1], teacher.shape[-1])
    return student[..., :parts], teacher[..., :parts]


def require_equal(student: Tensor, teacher: Tensor, what: str) -> None:
    """Refuse tensors of different shapes.

    Raises:
        ValueError: naming both shapes and what would make them equal.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} differ: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}; "
            "align the parts by overlap, and give widths that differ a connector"
        )


def require_positive(value: float, what: str) -> None:
    """Refuse zero and negative settings.

    Raises:
        ValueError: naming the setting.
    """
    if not value > 0:
        raise ValueError(f"{what} must be positive, got {value}")

"""What every distillation term asks of its two tensors."""

from __future__ import annotations

from torch import Tensor


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

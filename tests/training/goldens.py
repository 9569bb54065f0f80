"""Reads the loss goldens, which live beside the repository and never in it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

PATH = Path(__file__).parents[2] / "../shared/goldens/losses.npz"


@cache
def _arrays() -> dict[str, np.ndarray]:
    if not PATH.is_file():
        pytest.skip("the loss goldens (../shared/goldens/losses.npz) are not beside this checkout")
    with np.load(PATH) as file:
        return dict(file)


def given(name: str) -> torch.Tensor:
    return torch.from_numpy(_arrays()[f"in/{name}"].copy())


def expected(case: str, what: str = "value") -> torch.Tensor:
    return torch.from_numpy(np.array(_arrays()[f"{case}/{what}"]))


def check(case: str, loss: torch.Tensor, *students: torch.Tensor) -> None:
    """Value and gradient with respect to the student equal the golden's."""
    torch.testing.assert_close(
        loss.detach().double(), expected(case).double(), rtol=2e-6, atol=1e-7
    )
    names = ["grad"] if len(students) == 1 else [f"grad_{i}" for i in range(len(students))]
    for name, gradient in zip(names, torch.autograd.grad(loss, students), strict=True):
        golden = expected(case, name)
        difference = (gradient - golden).norm()
        assert difference <= 5e-6 * golden.norm() + 1e-9, f"{case} {name}: {difference}"

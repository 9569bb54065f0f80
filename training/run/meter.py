"""Means over the steps between two reports, kept on the device so that no step waits for it."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from training.objective.losses import accuracy
from training.objective.objective import Loss
from training.objective.student import StudentOutput
from training.process.events import Progressed


class Meter:
    """Sums what a step found; reads out their means and the pace.

    Args:
        total_steps: of the run.
        step: where this process began.
        last: what was read out last before that.
    """

    def __init__(self, total_steps: int, step: int, last: Mapping[str, float]) -> None:
        self._total_steps = total_steps
        self._began_at = step
        self._began = self._read = time.monotonic()
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._sequences = 0
        self.last = last

    def add(self, loss: Loss, student: StudentOutput, labels: Tensor) -> None:
        """Take in one step; nothing is waited for."""
        found = {
            "loss": loss.total.detach(),
            **loss.parts,
            "accuracy": accuracy(student.logits, labels),
            # A boundary term with an absolute margin inflates it; a collapse shows here first.
            "embedding_norm": student.embeddings.detach().norm(dim=1).mean(),
        }
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._steps += 1
        self._sequences += len(labels)

    def forget(self) -> None:
        """Leave out what has not been read: other terms follow."""
        self._sums, self._steps, self._sequences = {}, 0, 0

    def read(self, step: int, learning_rate: float, processes: int = 1) -> Progressed:
        """Means since the last reading, and how long the rest will take."""
        means = {name: float(value) / self._steps for name, value in self._sums.items()}
        now = time.monotonic()
        means["learning_rate"] = learning_rate
        means["sequences_per_s"] = processes * self._sequences / max(now - self._read, 1e-9)
        pace = (now - self._began) / (step - self._began_at)
        self._sums, self._steps, self._sequences, self._read = {}, 0, 0, now
        self.last = means
        return Progressed(
            step=step,
            total_steps=self._total_steps,
            eta_s=round(pace * (self._total_steps - step), 1),
            metrics={name: float(f"{value:.5g}") for name, value in means.items()},
        )

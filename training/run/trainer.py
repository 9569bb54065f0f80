"""Takes training steps: networks, optimiser and moving average."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from models.networks.device import MixedPrecision, lay_out_for_convolution
from models.networks.head import GaitOutput
from models.networks.network import GaitNetwork
from training.data.augmentation import augment, generator
from training.data.batches import Batch, join
from training.objective.objective import Loss, Objective
from training.objective.student import ConnectedStudent, StudentOutput
from training.objective.teachers import run_teachers
from training.recipe import Recipe
from training.run.distributed import Group
from training.run.optimisation import (
    make_optimiser,
    moving_average,
    rate_factor,
    set_rate,
)
from training.run.preparation import Preparation


class TrainingFailed(RuntimeError):
    """The run cannot go on: its numbers are no longer numbers."""


class TaughtBatch(NamedTuple):
    """What a step learns from: n augmented clips and what the teachers make of them.

    Attributes:
        clips: float32 in [0, 1], [n, s, 64, 44]; [sum(lengths), 64, 44] if frames differ in number.
        lengths: frames of each clip where they differ, else None.
        labels: int64 [n].
        teacher_outputs: of each teacher, embeddings [n, c', p'] and logits [n, k', p'].
    """

    clips: Tensor
    lengths: tuple[int, ...] | None
    labels: Tensor
    teacher_outputs: tuple[GaitOutput, ...]


class Trainer:
    """Takes steps. Its whole state can be taken out and put back.

    Args:
        recipe: how to train.
        preparation: the networks and data.
        group: the processes of this run.

    Attributes:
        step: steps done.
        seconds: time spent on them, over all processes that took part in a resumed run.
        rate: learning rate of the last step.
    """

    def __init__(self, recipe: Recipe, preparation: Preparation, group: Group) -> None:
        torch.manual_seed(recipe.seed)
        self._recipe = recipe
        self._teachers = preparation.teachers
        self._group = group
        self.precision = MixedPrecision.choose(recipe.precision, group.device)
        self.step = 0
        self.seconds = 0.0
        self.rate = 0.0

        widths = [t.network.channels for t in self._teachers] if recipe.connects else []
        self._student = preparation.student
        self._learner = ConnectedStudent(
            self._student, widths, frozen_stages=recipe.student.frozen_stages
        ).to(group.device)
        if group.size > 1 and group.device.type == "cuda":
            # torch has none for the CPU: there each process normalises by its own sequences.
            nn.SyncBatchNorm.convert_sync_batchnorm(self._learner)  # type: ignore[no-untyped-call]
        for network in (self._learner, *(teacher.network for teacher in self._teachers)):
            lay_out_for_convolution(network)
        self._average: AveragedModel | None = None
        if recipe.average is not None:
            self._average = moving_average(self._student, recipe.average)
        self._optimiser: Optimizer = make_optimiser(recipe.optimiser, self._learner)
        self._objective = Objective(recipe.terms, recipe.distillation, group.gather)
        if recipe.compile:
            self._learner.compile()
        self._embed: Callable[..., StudentOutput] = self._learner
        if group.size > 1:
            devices = [group.device] if group.device.type == "cuda" else None
            self._embed = DistributedDataParallel(self._learner, device_ids=devices)

    def train(self, batch: Batch) -> tuple[Loss, StudentOutput]:
        """Take one step on a batch."""
        return self.learn(self.teach(batch))

    def teach(self, batch: Batch) -> TaughtBatch:
        """Augment a batch's clips and run the teachers on them.

        The result depends on recipe and step alone, so trainers that differ in their terms can
        share it.
        """
        began = time.monotonic()
        random = generator(self._recipe.seed, batch.step, self._group.rank)
        views = augment(batch.silhouettes, self._recipe.data.augmentation, random)
        clips = join(views, batch.lengths)
        teacher_outputs = run_teachers(self._teachers, clips, batch.lengths, self.precision)
        self.seconds += time.monotonic() - began
        return TaughtBatch(clips, batch.lengths, batch.labels, teacher_outputs)

    def learn(self, taught: TaughtBatch) -> tuple[Loss, StudentOutput]:
        """Take one step on a taught batch."""
        began = time.monotonic()
        recipe = self._recipe
        self._learner.train()
        with self.precision.autocast():
            student = self._embed(taught.clips, taught.lengths)
        loss = self._objective(
            student, taught.labels, taught.teacher_outputs, progress=self.step / recipe.steps
        )
        self._optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        if recipe.clip_gradient is not None:
            torch.nn.utils.clip_grad_norm_(self._learner.parameters(), recipe.clip_gradient)
        self.rate = recipe.optimiser.learning_rate * rate_factor(
            recipe.schedule, self.step, recipe.steps
        )
        set_rate(self._optimiser, self.rate)
        self._optimiser.step()
        if self._average is not None:
            self._average.update_parameters(self._student)
        self.step += 1
        self.seconds += time.monotonic() - began
        return loss, student

    @property
    def result(self) -> GaitNetwork:
        """The network to evaluate and to save: the moving average, where the recipe keeps one."""
        if self._average is None:
            return self._student
        return cast(GaitNetwork, self._average.module)

    def snapshot(self) -> dict[str, Any]:
        """Everything the next step depends on. Teachers are not in it.

        Raises:
            TrainingFailed: a weight is infinite or NaN: such a state must not replace a good one.
        """
        for name, weights in self._learner.named_parameters():
            if not bool(weights.isfinite().all()):
                raise TrainingFailed(
                    f"the weights {name} became infinite or NaN by step {self.step}; "
                    "lower optimiser.learning_rate or set clip_gradient"
                )
        return {
            "step": self.step,
            "seconds": self.seconds,
            "learner": self._learner.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "random": torch.get_rng_state(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot, as if there had been no interruption."""
        self.step = snapshot["step"]
        self.seconds = snapshot["seconds"]
        self._learner.load_state_dict(snapshot["learner"])
        self._optimiser.load_state_dict(snapshot["optimiser"])
        if self._average is not None:
            self._average.module.load_state_dict(snapshot["average"])
            self._average.n_averaged.fill_(self.step + 1)
        torch.set_rng_state(snapshot["random"])


def require_finite(loss: float, step: int) -> None:
    """Stop a run whose loss is no number any more.

    Raises:
        TrainingFailed: it is infinite or NaN.
    """
    if not math.isfinite(loss):
        raise TrainingFailed(
            f"the loss became {loss} by step {step}; lower optimiser.learning_rate, lengthen "
            "schedule.warm_up or set clip_gradient"
        )

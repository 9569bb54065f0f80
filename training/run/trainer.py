"""Takes training steps: networks, optimiser and moving average."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from models.networks.blocks import fold_batch_norm
from models.networks.device import MixedPrecision, lay_out_for_convolution
from models.networks.head import GaitOutput
from models.networks.network import GaitNetwork
from training.data.augmentation import Stream, augment, generator, mask, swap_patches, vary
from training.data.batches import Batch, join
from training.objective.lesson import MASKED, PLAIN, STRONG, Networks
from training.objective.objective import Loss, Objective
from training.objective.student import ConnectedStudent, StudentOutput
from training.objective.teachers import read_by, run_teachers
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
    """What a step learns from: v views of n clips and what the teachers make of v' of them.

    Attributes:
        clips: float32 in [0, 1], [v · n, s, 64, 44], view after view; [sum(lengths), 64, 44] if
            frames differ in number. With pose maps [3, 64, 44] for each [64, 44], if the student
            reads them.
        lengths: frames of each clip where they differ, else None.
        labels: int64 [n].
        teacher_outputs: of each teacher, embeddings [v' · n, c', p'] and logits [v' · n, k', p'].
        views: names of the views; that for the student alone is the last.
        partners: int64 [n], with whom each walk may have exchanged patches; None: nobody did.
        lost: bool [n, 64], rows that are gone in the strong view, if there is one.
    """

    clips: Tensor
    lengths: tuple[int, ...] | None
    labels: Tensor
    teacher_outputs: tuple[GaitOutput, ...]
    views: tuple[str, ...] = (PLAIN,)
    partners: Tensor | None = None
    lost: Tensor | None = None


class Learner(nn.Module):
    """Student and objective in one module, so that one optimiser and one DDP hold both.

    Args:
        student: with its connectors.
        objective: with its terms' modules.
        precision: of the student's products; losses are computed in float32.
    """

    def __init__(
        self, student: ConnectedStudent, objective: Objective, precision: MixedPrecision
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self._precision = precision

    def forward(self, taught: TaughtBatch, step: int) -> tuple[Loss, StudentOutput]:
        """The loss of a batch, and the student's outputs for its first view."""
        with self._precision.autocast():
            student: StudentOutput = self.student(taught.clips, taught.lengths)
        loss: Loss = self.objective(
            student,
            taught.labels,
            taught.teacher_outputs,
            step=step,
            views=taught.views,
            partners=taught.partners,
            lost=taught.lost,
        )
        n = len(taught.labels)
        return loss, StudentOutput(student.embeddings[:n], student.logits[:n], ())


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

        networks = Networks(preparation.student, [t.network for t in self._teachers])
        widths = [network.channels for network in networks.teachers] if recipe.connects else []
        self._student = preparation.student
        self._learner = ConnectedStudent(
            self._student,
            widths,
            frozen_stages=recipe.student.frozen_stages,
            stages=any(term.asks_stages for term in recipe.terms),
        )
        self._objective = Objective(recipe, group.gather, networks, rank=group.rank)
        self._both = Learner(self._learner, self._objective, self.precision).to(group.device)
        if group.size > 1 and group.device.type == "cuda":
            # torch has none for the CPU: there each process normalises by its own sequences.
            nn.SyncBatchNorm.convert_sync_batchnorm(self._both)  # type: ignore[no-untyped-call]
        for teacher in self._teachers:
            fold_batch_norm(teacher.network)  # a seventh less of its time, in every step
        for network in (self._both, *(teacher.network for teacher in self._teachers)):
            lay_out_for_convolution(network)
        self._average: AveragedModel | None = None
        if recipe.average is not None:
            self._average = moving_average(self._student, recipe.average)
        self._optimiser: Optimizer = make_optimiser(recipe.optimiser, self._both)
        if recipe.compile:
            self._learner.compile()
        self._learn: nn.Module = self._both
        if group.size > 1:
            devices = [group.device] if group.device.type == "cuda" else None
            self._learn = DistributedDataParallel(self._both, device_ids=devices)

    def train(self, batch: Batch) -> tuple[Loss, StudentOutput]:
        """Take one step on a batch."""
        return self.learn(self.teach(batch))

    def teach(self, batch: Batch) -> TaughtBatch:
        """Augment a batch's clips and run the teachers on them.

        The result depends on recipe and step alone, so trainers that differ in their terms can
        share it.
        """
        began = time.monotonic()
        data = self._recipe.data

        def random(stream: Stream) -> torch.Generator:
            return generator(self._recipe.seed, batch.step, self._group.rank, stream)

        silhouettes, partners = batch.silhouettes, None
        if batch.pose_maps is not None:
            silhouettes = torch.cat([batch.pose_maps, silhouettes.unsqueeze(2)], 2)
        if data.swap is not None:
            walkers: Sequence[object] = batch.subjects
            if data.swap.same_view:
                walkers = list(zip(batch.subjects, batch.views, strict=True))
            silhouettes, partners = swap_patches(
                silhouettes, walkers, data.swap, random(Stream.SWAP)
            )
        views = {PLAIN: augment(silhouettes, data.augmentation, random(Stream.WEAK))}
        lost = None
        if data.strong is not None:
            views[STRONG], lost = vary(silhouettes, data.strong, random(Stream.STRONG))
        seen = join(torch.cat(list(views.values())), _repeated(batch.lengths, len(views)))
        teacher_outputs = run_teachers(
            self._teachers, seen, _repeated(batch.lengths, len(views)), self.precision
        )
        clips = seen
        if data.masked is not None:
            views[MASKED] = mask(views[PLAIN], data.masked, random(Stream.MASK))
            clips = torch.cat([seen, join(views[MASKED], batch.lengths)])
        clips = read_by(self._student, clips, batch.lengths)
        self.seconds += time.monotonic() - began
        return TaughtBatch(
            clips,
            _repeated(batch.lengths, len(views)),
            batch.labels,
            teacher_outputs,
            tuple(views),
            partners,
            lost,
        )

    def learn(self, taught: TaughtBatch) -> tuple[Loss, StudentOutput]:
        """Take one step on a taught batch."""
        began = time.monotonic()
        recipe = self._recipe
        self._both.train()
        loss: Loss
        student: StudentOutput
        loss, student = self._learn(taught, self.step)
        self._optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        if recipe.clip_gradient is not None:
            torch.nn.utils.clip_grad_norm_(self._both.parameters(), recipe.clip_gradient)
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

    def followed_by(self, recipe: Recipe, preparation: Preparation) -> Trainer:
        """A trainer that goes on, by another recipe, with what this one's steps made."""
        self._student.load_state_dict(self.result.state_dict())
        self._optimiser.zero_grad()  # or what is frozen from now on would count when clipping
        following = Trainer(recipe, preparation, self._group)
        following.seconds = self.seconds
        return following

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
        for name, weights in self._both.named_parameters():
            if not bool(weights.isfinite().all()):
                raise TrainingFailed(
                    f"the weights {name} became infinite or NaN by step {self.step}; "
                    "lower optimiser.learning_rate or set clip_gradient"
                )
        return {
            "step": self.step,
            "seconds": self.seconds,
            "learner": self._learner.state_dict(),
            "objective": self._objective.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "random": torch.get_rng_state(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot, as if there had been no interruption."""
        self.step = snapshot["step"]
        self.seconds = snapshot["seconds"]
        self._learner.load_state_dict(snapshot["learner"])
        # A state of before terms had modules has none, and then the terms have none either.
        self._objective.load_state_dict(snapshot.get("objective", {}))
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


def _repeated(lengths: tuple[int, ...] | None, views: int) -> tuple[int, ...] | None:
    """The lengths of all views' clips."""
    return None if lengths is None else lengths * views

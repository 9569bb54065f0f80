"""What the terms of an objective read in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from models.networks.head import GaitOutput
from models.networks.network import GaitNetwork
from training.objective.distillation.alignment import align_parts, truncate_parts
from training.objective.distillation.temperature import informative_temperature
from training.objective.student import StudentOutput
from training.recipe.terms import InformativeTemperature, Temperature, Term

PLAIN: str = "plain"
STRONG: str = "strong"
MASKED: str = "masked"


class Seen(NamedTuple):
    """One view of a batch, as the student and its teachers see it.

    Attributes:
        student: of n sequences.
        teachers: of each teacher; empty for a view that the student alone has.
    """

    student: StudentOutput
    teachers: tuple[GaitOutput, ...]


@dataclass(frozen=True)
class Lesson:
    """A batch of n sequences of this process, for a term: one view of it, and one teacher.

    Attributes:
        views: all views.
        labels: int64 [n].
        step: steps done.
        steps: of the run.
        gather: brings the rows of all processes together, differentiably, for terms that compare
            sequences with each other; others are means over sequences, which DDP averages.
        parts: how a teacher's parts meet the student's.
        partners: int64 [n], with whom each walk may have exchanged patches.
        lost: bool [n, rows], rows that are gone in the strong view.
        view: that the term is evaluated on.
        number: of the teacher.
        first: place of this process's first row among `everyone`'s.
    """

    views: Mapping[str, Seen]
    labels: Tensor
    step: int
    steps: int
    gather: Callable[[Tensor], Tensor]
    parts: Literal["overlap", "truncate"] = "overlap"
    partners: Tensor | None = None
    lost: Tensor | None = None
    view: str = PLAIN
    number: int = 0
    first: int = 0
    _gathered: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def student(self) -> StudentOutput:
        """The student's outputs for the view."""
        return self.views[self.view].student

    @property
    def teacher(self) -> GaitOutput:
        """The teacher's outputs for the view."""
        return self.views[self.view].teachers[self.number]

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.step / self.steps

    def warmth(self, warm_up: float) -> float:
        """From 0 to 1 over the first share `warm_up` of the run."""
        return min(1.0, self.progress / warm_up) if warm_up else 1.0

    def own(self, *, connector: bool) -> Tensor:
        """The student's embeddings [n, c, p], or those behind its connector to the teacher."""
        return self.student.connected[self.number] if connector else self.student.embeddings

    def aligned(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both with the same parts: [n, …, p] and [n, …, p']."""
        if self.parts == "truncate":
            return truncate_parts(student, teacher)
        return student, align_parts(teacher, student.shape[-1])

    def everyone(self, rows: Tensor) -> Tensor:
        """These rows of all m processes, [n, …] → [m · n, …]; gathered once, however many ask."""
        if id(rows) not in self._gathered:
            # With the rows themselves: as long as they are held, nothing else has their id.
            self._gathered[id(rows)] = (rows, self.gather(rows))
        return self._gathered[id(rows)][1]

    def seen_as(self, view: str) -> Lesson:
        """The same batch, another view."""
        return replace(self, view=view)

    def of_teacher(self, number: int) -> Lesson:
        """The same batch, another teacher."""
        return replace(self, number=number)

    def only(self, rows: Tensor) -> Lesson:
        """A part of the sequences [m], for terms that are means over sequences."""
        seen = self.views[self.view]
        student = StudentOutput(
            seen.student.embeddings[rows],
            seen.student.logits[rows],
            tuple(connected[rows] for connected in seen.student.connected),
        )
        teachers = tuple(GaitOutput(t.embeddings[rows], t.logits[rows]) for t in seen.teachers)
        views = {self.view: Seen(student, teachers)}
        return replace(self, views=views, labels=self.labels[rows], _gathered={})


class Networks(NamedTuple):
    """What a term's own modules are built for."""

    student: GaitNetwork
    teachers: Sequence[GaitNetwork]


T = TypeVar("T", bound=Term)


class Method(nn.Module, Generic[T]):
    """A term at work. What it learns or remembers beside the student is its parameters and buffers.

    They are trained with the student, saved in a run's state, and never in a checkpoint.

    Args:
        term: kind and options.
        networks: of the run.
    """

    def __init__(self, term: T, networks: Networks) -> None:
        del networks  # for those that have modules
        super().__init__()
        self.term = term

    def forward(self, lesson: Lesson) -> Tensor:
        """The term's value before its weight: a scalar, float32."""
        raise NotImplementedError


def temperature_of(setting: Temperature, logits: Tensor, scale: float) -> float:
    """A term's temperature for logits [n, k, p]."""
    if isinstance(setting, InformativeTemperature):
        return informative_temperature(logits.shape[1], gap=setting.gap, scale=scale)
    return setting


def half_as(maps: Tensor) -> torch.autocast:
    """Within, products run in bfloat16 if the maps are in it: what a stage is continued with."""
    return torch.autocast(maps.device.type, torch.bfloat16, enabled=maps.dtype == torch.bfloat16)

"""A recipe's weighted terms, from the outputs of a batch to one number and its named parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from models.networks.head import GaitOutput
from training.objective.choice import best_teacher, shares
from training.objective.lesson import MASKED, PLAIN, Lesson, Networks, Seen
from training.objective.registry import METHODS
from training.objective.student import StudentOutput
from training.recipe import Recipe
from training.recipe.terms import AnyTerm


class Loss(NamedTuple):
    """What is minimised, and the value of each term before its weight."""

    total: Tensor
    parts: Mapping[str, Tensor]


class Objective(nn.Module):
    """The sum of a recipe's terms, with the modules that they have beside the student.

    Args:
        recipe: terms, and how teachers are combined, aligned and ramped up.
        gather: brings the rows of all processes together, differentiably.
        networks: of the run, for terms that have modules; None where none has.
        rank: of this process.
    """

    def __init__(
        self,
        recipe: Recipe,
        gather: Callable[[Tensor], Tensor],
        networks: Networks | None = None,
        *,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self._recipe, self._gather, self._rank = recipe, gather, rank
        self._methods = nn.ModuleDict(
            {
                name: METHODS[term.kind](term, cast(Networks, networks))
                for name, term in zip(_names(recipe.terms), recipe.terms, strict=True)
            }
        )

    def forward(
        self,
        student: StudentOutput,
        labels: Tensor,
        teachers: Sequence[GaitOutput],
        *,
        step: int,
        views: Sequence[str] = (PLAIN,),
        partners: Tensor | None = None,
        lost: Tensor | None = None,
    ) -> Loss:
        """Evaluate every term.

        Args:
            student: of v views of n sequences, view after view: embeddings [v · n, c, p] and
                logits [v · n, k, p], through each connector embeddings [v · n, c', p], and the
                stages' maps if a term asks for them.
            labels: integer identities [n].
            teachers: of each teacher on the same clips, embeddings and logits of the views that
                teachers see, [v' · n, c', p'] and [v' · n, k, p'].
            step: steps done.
            views: names of the views. A term that does not compare them is summed over those that
                teachers see.
            partners: int64 [n], with whom each walk may have exchanged patches.
            lost: bool [n, rows], rows that are gone in the strong view.

        Raises:
            ValueError: shapes that a term cannot compare.
        """
        recipe = self._recipe
        n = len(labels)
        seen = _by_view(student, teachers, views, n)
        lesson = Lesson(
            seen,
            labels,
            step,
            recipe.steps,
            self._gather,
            recipe.distillation.parts,
            partners,
            lost,
            first=self._rank * n,
        )
        # All outputs and weights take part, if only with weight 0: DDP waits for every gradient.
        total = 0.0 * (
            student.logits.sum()
            + sum(connected.sum() for connected in student.connected)
            + sum(weight.sum() for weight in self.parameters())
        )
        ramp = lesson.warmth(recipe.distillation.ramp)
        parts: dict[str, Tensor] = {}
        for name, method in self._methods.items():
            term: AnyTerm = cast(Any, method).term
            shown = [PLAIN] if term.reads_views else [view for view in seen if view != MASKED]
            value = total.new_zeros(())
            for view in shown:
                of_view = lesson.seen_as(view)
                value = value + (
                    self._taught(method, of_view, len(teachers)) if term.taught else method(of_view)
                )
            total = total + (ramp if term.taught else 1.0) * term.weight * value
            parts[name] = value.detach()
        return Loss(total, parts)

    def _taught(self, method: nn.Module, lesson: Lesson, teachers: int) -> Tensor:
        """A term's value over its teachers."""
        settings = self._recipe.distillation
        value = lesson.student.embeddings.new_zeros(())
        if settings.teachers == "best":
            best = best_teacher(lesson.views[lesson.view].teachers, lesson.labels)
            for number in range(teachers):
                rows = torch.nonzero(best == number).flatten()
                if len(rows):
                    share = len(rows) / len(best)
                    value = value + share * method(lesson.only(rows).of_teacher(number))
            return value
        for number, share in enumerate(shares(settings, teachers, lesson.step, self._recipe.seed)):
            if share:
                value = value + share * method(lesson.of_teacher(number))
        return value


def _by_view(
    student: StudentOutput, teachers: Sequence[GaitOutput], views: Sequence[str], n: int
) -> dict[str, Seen]:
    """The rows of each view."""
    found = {}
    for place, view in enumerate(views):
        rows = slice(place * n, (place + 1) * n)
        own = StudentOutput(
            student.embeddings[rows],
            student.logits[rows],
            tuple(connected[rows] for connected in student.connected),
            tuple(maps[rows] for maps in student.stages),
        )
        taught = tuple(GaitOutput(t.embeddings[rows], t.logits[rows]) for t in teachers)
        found[view] = Seen(own, () if view == MASKED else taught)
    return found


def _names(terms: Sequence[AnyTerm]) -> list[str]:
    """The kinds; a kind that comes again is numbered from 2."""
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        seen[term.kind] += 1
        names.append(term.kind if seen[term.kind] == 1 else f"{term.kind}-{seen[term.kind]}")
    return names

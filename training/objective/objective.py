"""A recipe's weighted terms, from the outputs of a batch to one number and its named parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, assert_never

from torch import Tensor

from models.networks.head import GaitOutput
from training.objective.distillation.alignment import align_parts, truncate_parts
from training.objective.distillation.boundary import activation_boundary, relative_boundary
from training.objective.distillation.decoupled import decoupled_distillation
from training.objective.distillation.hint import hint
from training.objective.distillation.logit import logit_distillation, logit_regression
from training.objective.distillation.ranking import ranking_distillation
from training.objective.distillation.relation import relation_distillation
from training.objective.distillation.temperature import informative_temperature
from training.objective.learner import Learned
from training.objective.losses import cross_entropy, triplet
from training.recipe import (
    BoundaryTerm,
    CoordinateTerm,
    CrossEntropyTerm,
    DecoupledTerm,
    DistanceTerm,
    Distillation,
    DistillationTerm,
    HintTerm,
    IdentityTerm,
    InformativeTemperature,
    LabelTerm,
    LogitRegressionTerm,
    LogitTerm,
    RankingTerm,
    RelationTerm,
    Temperature,
    TripletTerm,
)


class Loss(NamedTuple):
    """What is minimised, and the value of each term before its weight."""

    total: Tensor
    parts: Mapping[str, Tensor]


class Objective:
    """The sum of a recipe's terms.

    Args:
        terms: weighted terms.
        distillation: how teachers are combined, aligned and ramped up.
        gather: brings the rows of all processes together, differentiably, for terms that compare
            sequences with each other; the others are means over sequences, which DDP averages by
            itself.
    """

    def __init__(
        self,
        terms: Sequence[LabelTerm | DistillationTerm],
        distillation: Distillation,
        gather: Callable[[Tensor], Tensor],
    ) -> None:
        self._terms = dict(zip(_names(terms), terms, strict=True))
        self._distillation = distillation
        self._gather = gather

    def __call__(
        self, learned: Learned, labels: Tensor, lessons: Sequence[GaitOutput], *, progress: float
    ) -> Loss:
        """Evaluate every term.

        Args:
            learned: of the student, [n, …].
            labels: [n] integer identities.
            lessons: of each teacher on the same clips.
            progress: share of the run that is done, for the ramp.

        Raises:
            ValueError: shapes that a term cannot compare.
        """
        ramp = self._distillation.ramp
        warmth = min(1.0, progress / ramp) if ramp else 1.0
        share = 1 / len(lessons) if lessons and self._distillation.teachers == "mean" else 1.0
        everyone = _Everyone(
            self._gather(learned.embeddings),
            self._gather(labels),
            tuple(self._gather(lesson.embeddings) for lesson in lessons)
            if any(isinstance(term, DistanceTerm) for term in self._terms.values())
            else (),
        )
        # Every output takes part, if only with weight 0: DDP waits for a gradient of every weight.
        total = 0.0 * (learned.logits.sum() + sum(c.sum() for c in learned.connected))
        parts: dict[str, Tensor] = {}
        for name, term in self._terms.items():
            if isinstance(term, LabelTerm):
                value = _from_labels(term, learned, labels, everyone)
                total = total + term.weight * value
            else:
                value = share * sum(
                    (
                        self._from_teacher(term, number, learned, labels, lesson, everyone)
                        for number, lesson in enumerate(lessons)
                    ),
                    start=learned.embeddings.new_zeros(()),
                )
                total = total + warmth * term.weight * value
            parts[name] = value.detach()
        return Loss(total, parts)

    def _from_teacher(
        self,
        term: DistillationTerm,
        number: int,
        learned: Learned,
        labels: Tensor,
        lesson: GaitOutput,
        everyone: _Everyone,
    ) -> Tensor:
        match term:
            case LogitTerm() | LogitRegressionTerm() | DecoupledTerm():
                return _from_logits(term, *self._aligned(learned.logits, lesson.logits), labels)
            case BoundaryTerm() | HintTerm():
                own = learned.connected[number] if term.connector else learned.embeddings
                return _from_coordinates(term, *self._aligned(own, lesson.embeddings))
            case RankingTerm():
                return ranking_distillation(
                    everyone.embeddings,
                    everyone.taught[number],
                    temperature=term.temperature,
                    per_part=term.per_part,
                )
            case RelationTerm():
                return relation_distillation(
                    everyone.embeddings, everyone.taught[number], everyone.labels, delta=term.delta
                )
            case _:
                assert_never(term)

    def _aligned(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self._distillation.parts == "truncate":
            return truncate_parts(student, teacher)
        return student, align_parts(teacher, student.shape[-1])


class _Everyone(NamedTuple):
    """Rows of all processes."""

    embeddings: Tensor
    labels: Tensor
    taught: tuple[Tensor, ...]  # embeddings of each teacher; empty when no term compares distances


def _from_labels(term: LabelTerm, learned: Learned, labels: Tensor, everyone: _Everyone) -> Tensor:
    match term:
        case TripletTerm():
            return triplet(everyone.embeddings, everyone.labels, margin=term.margin)
        case CrossEntropyTerm():
            return cross_entropy(learned.logits, labels, scale=term.scale, smoothing=term.smoothing)
        case _:
            assert_never(term)


def _from_logits(term: IdentityTerm, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    match term:
        case LogitTerm():
            temperature = _temperature(term.temperature, student, term.scale)
            return logit_distillation(student, teacher, temperature=temperature, scale=term.scale)
        case LogitRegressionTerm():
            return logit_regression(student, teacher, scale=term.scale)
        case DecoupledTerm():
            return decoupled_distillation(
                student,
                teacher,
                labels,
                temperature=_temperature(term.temperature, student, term.scale),
                target_weight=term.target_weight,
                rest_weight=term.rest_weight,
                scale=term.scale,
            )
        case _:
            assert_never(term)


def _from_coordinates(term: CoordinateTerm, student: Tensor, teacher: Tensor) -> Tensor:
    match term:
        case BoundaryTerm():
            boundary = relative_boundary if term.relative else activation_boundary
            return boundary(student, teacher, margin=term.margin)
        case HintTerm():
            return hint(student, teacher)
        case _:
            assert_never(term)


def _temperature(setting: Temperature, logits: Tensor, scale: float) -> float:
    if isinstance(setting, InformativeTemperature):
        return informative_temperature(logits.shape[1], gap=setting.gap, scale=scale)
    return setting


def _names(terms: Sequence[LabelTerm | DistillationTerm]) -> list[str]:
    """The kinds; a kind that comes again is numbered from 2."""
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        seen[term.kind] += 1
        names.append(term.kind if seen[term.kind] == 1 else f"{term.kind}-{seen[term.kind]}")
    return names

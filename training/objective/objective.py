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
from training.objective.losses import cross_entropy, triplet
from training.objective.student import StudentOutput
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
        self,
        student: StudentOutput,
        labels: Tensor,
        teachers: Sequence[GaitOutput],
        *,
        progress: float,
    ) -> Loss:
        """Evaluate every term.

        Args:
            student: embeddings [n, c, p] and logits [n, k, p], and through each connector
                embeddings [n, c', p].
            labels: integer identities [n].
            teachers: of each teacher on the same clips, embeddings [n, c', p'] and logits
                [n, k, p'].
            progress: share of the run that is done, in [0, 1], for the ramp.

        Raises:
            ValueError: shapes that a term cannot compare.
        """
        ramp = self._distillation.ramp
        warmth = min(1.0, progress / ramp) if ramp else 1.0
        share = 1 / len(teachers) if teachers and self._distillation.teachers == "mean" else 1.0
        gathered = _GatheredBatch(
            self._gather(student.embeddings),
            self._gather(labels),
            tuple(self._gather(teacher.embeddings) for teacher in teachers)
            if any(isinstance(term, DistanceTerm) for term in self._terms.values())
            else (),
        )
        # Every output takes part, if only with weight 0: DDP waits for a gradient of every weight.
        total = 0.0 * (student.logits.sum() + sum(c.sum() for c in student.connected))
        parts: dict[str, Tensor] = {}
        for name, term in self._terms.items():
            if isinstance(term, LabelTerm):
                value = _from_labels(term, student, labels, gathered)
                total = total + term.weight * value
            else:
                value = share * sum(
                    (
                        self._from_teacher(term, number, student, labels, teacher, gathered)
                        for number, teacher in enumerate(teachers)
                    ),
                    start=student.embeddings.new_zeros(()),
                )
                total = total + warmth * term.weight * value
            parts[name] = value.detach()
        return Loss(total, parts)

    def _from_teacher(
        self,
        term: DistillationTerm,
        number: int,
        student: StudentOutput,
        labels: Tensor,
        teacher: GaitOutput,
        gathered: _GatheredBatch,
    ) -> Tensor:
        match term:
            case LogitTerm() | LogitRegressionTerm() | DecoupledTerm():
                return _from_logits(term, *self._aligned(student.logits, teacher.logits), labels)
            case BoundaryTerm() | HintTerm():
                own = student.connected[number] if term.connector else student.embeddings
                return _from_coordinates(term, *self._aligned(own, teacher.embeddings))
            case RankingTerm():
                return ranking_distillation(
                    gathered.embeddings,
                    gathered.teachers[number],
                    temperature=term.temperature,
                    per_part=term.per_part,
                )
            case RelationTerm():
                return relation_distillation(
                    gathered.embeddings,
                    gathered.teachers[number],
                    gathered.labels,
                    delta=term.delta,
                )
            case _:
                assert_never(term)

    def _aligned(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self._distillation.parts == "truncate":
            return truncate_parts(student, teacher)
        return student, align_parts(teacher, student.shape[-1])


class _GatheredBatch(NamedTuple):
    """Rows of all m processes: embeddings [m · n, c, p], labels [m · n]."""

    embeddings: Tensor
    labels: Tensor
    teachers: tuple[
        Tensor, ...
    ]  # embeddings of each teacher; empty when no term compares distances


def _from_labels(
    term: LabelTerm, student: StudentOutput, labels: Tensor, gathered: _GatheredBatch
) -> Tensor:
    match term:
        case TripletTerm():
            return triplet(gathered.embeddings, gathered.labels, margin=term.margin)
        case CrossEntropyTerm():
            return cross_entropy(student.logits, labels, scale=term.scale, smoothing=term.smoothing)
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

"""The terms that need nothing but a step's outputs, over the functions that compute them."""

from __future__ import annotations

from torch import Tensor

from training.objective.distillation.boundary import activation_boundary, relative_boundary
from training.objective.distillation.decoupled import decoupled_distillation
from training.objective.distillation.hint import hint
from training.objective.distillation.logit import logit_distillation, logit_regression
from training.objective.distillation.ranking import ranking_distillation
from training.objective.distillation.relation import relation_distillation
from training.objective.lesson import Lesson, Method, temperature_of
from training.objective.losses import cross_entropy, triplet
from training.recipe.terms import (
    BoundaryTerm,
    CrossEntropyTerm,
    DecoupledTerm,
    HintTerm,
    LogitRegressionTerm,
    LogitTerm,
    RankingTerm,
    RelationTerm,
    TripletTerm,
)


class Triplet(Method[TripletTerm]):
    """See `losses.triplet`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Over the sequences of all processes."""
        embeddings = lesson.everyone(lesson.student.embeddings)
        return triplet(embeddings, lesson.everyone(lesson.labels), margin=self.term.margin)


class CrossEntropy(Method[CrossEntropyTerm]):
    """See `losses.cross_entropy`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences."""
        term = self.term
        return cross_entropy(
            lesson.student.logits, lesson.labels, scale=term.scale, smoothing=term.smoothing
        )


class Logit(Method[LogitTerm]):
    """See `logit.logit_distillation`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences."""
        own, taught = lesson.aligned(lesson.student.logits, lesson.teacher.logits)
        scale = self.term.scale
        temperature = temperature_of(self.term.temperature, own, scale)
        return logit_distillation(
            own, taught, temperature=temperature, standardise=self.term.standardise, scale=scale
        )


class LogitRegression(Method[LogitRegressionTerm]):
    """See `logit.logit_regression`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences."""
        own, taught = lesson.aligned(lesson.student.logits, lesson.teacher.logits)
        return logit_regression(own, taught, scale=self.term.scale)


class Decoupled(Method[DecoupledTerm]):
    """See `decoupled.decoupled_distillation`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences."""
        term = self.term
        own, taught = lesson.aligned(lesson.student.logits, lesson.teacher.logits)
        return lesson.warmth(term.warm_up) * decoupled_distillation(
            own,
            taught,
            lesson.labels,
            temperature=temperature_of(term.temperature, own, term.scale),
            target_weight=term.target_weight,
            rest_weight=term.rest_weight,
            scale=term.scale,
        )


class Boundary(Method[BoundaryTerm]):
    """See `boundary.activation_boundary`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences."""
        boundary = relative_boundary if self.term.relative else activation_boundary
        own = lesson.own(connector=self.term.connector)
        return boundary(*lesson.aligned(own, lesson.teacher.embeddings), margin=self.term.margin)


class Hint(Method[HintTerm]):
    """See `hint.hint`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences."""
        own = lesson.own(connector=self.term.connector)
        return hint(*lesson.aligned(own, lesson.teacher.embeddings))


class Ranking(Method[RankingTerm]):
    """See `ranking.ranking_distillation`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Over the sequences of all processes."""
        return ranking_distillation(
            lesson.everyone(lesson.student.embeddings),
            lesson.everyone(lesson.teacher.embeddings),
            temperature=self.term.temperature,
            per_part=self.term.per_part,
        )


class Relation(Method[RelationTerm]):
    """See `relation.relation_distillation`."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Over the sequences of all processes."""
        return relation_distillation(
            lesson.everyone(lesson.student.embeddings),
            lesson.everyone(lesson.teacher.embeddings),
            lesson.everyone(lesson.labels),
            delta=self.term.delta,
        )

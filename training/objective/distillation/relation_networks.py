"""CORSD (2305.00918): what the deepest stage finds of pairs of walks, taught to those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.objective.distillation.exits import SeparableConv, stage_shapes
from training.objective.lesson import Lesson, Method, Networks
from training.objective.losses import LOGIT_SCALE
from training.recipe.terms import RelationNetworksTerm


class Relations(NamedTuple):
    """What one stage's relation network finds of n anchors with a positive and a negative each.

    Attributes:
        positive: [n] in (0, 1), how unlike anchor and positive are.
        negative: [n], the same of anchor and negative.
        positive_logits: [n, k], who anchor and positive are.
        negative_logits: [n, k], who anchor and negative are.
    """

    positive: Tensor
    negative: Tensor
    positive_logits: Tensor
    negative_logits: Tensor


def relational_loss(
    stages: Sequence[Relations],
    labels: Tensor,
    negatives: Tensor,
    rows: Tensor,
    term: RelationNetworksTerm,
) -> Tensor:
    """Labels for the relations of every stage, and the deepest as the others' fixed teacher.

    Args:
        stages: the deepest first.
        labels: [n] integer identities of anchors and positives.
        negatives: [n] identities of the negatives.
        rows: [n] 1 or 0: an anchor without a positive or a negative counts 0.
        term: weights, temperature and margin.

    Returns:
        A scalar: sums over stages of means over anchors. The mixture's target is half of either
        identity.
    """
    deepest = stages[0]
    identities = deepest.positive_logits.shape[1]
    mixture = (F.one_hot(labels, identities) + F.one_hot(negatives, identities)).float() / 2
    temperature = term.temperature
    total = deepest.positive.new_zeros(len(labels))
    for depth, found in enumerate(stages):
        total = total + term.positive_label_weight * F.cross_entropy(
            found.positive_logits, labels, reduction="none"
        )
        total = total + term.negative_label_weight * _soft_cross_entropy(
            found.negative_logits, mixture, temperature
        )
        hinge = F.relu(found.positive - found.negative + term.margin)
        total = total + term.triplet_weight * hinge
        if depth == 0:
            continue
        for mine, taught, weight in (
            (found.positive_logits, deepest.positive_logits, term.positive_weight),
            (found.negative_logits, deepest.negative_logits, term.negative_weight),
        ):
            total = total + weight * _divergence(mine, taught.detach(), temperature)
        for score, target in (
            (found.positive, deepest.positive),
            (found.negative, deepest.negative),
        ):
            total = total + term.score_weight * (score - target.detach()).square()
    return (total * rows).mean()


def _soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    return -(target * F.log_softmax(logits / temperature, dim=1)).sum(dim=1)


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
    return divergence * temperature**2


class RelationNetwork(nn.Module):
    """From the maps of two walks, channel after channel, to a score and to identities.

    Args:
        shape: channels, rows and columns of a walk's maps.
        rows: to which the maps are brought.
        width: of the layers.
        identities: k.
    """

    def __init__(self, shape: tuple[int, int, int], rows: int, width: int, identities: int) -> None:
        super().__init__()
        channels, height, _ = shape
        layers: list[nn.Module] = [
            nn.Conv2d(2 * channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        while height > rows:
            layers.append(SeparableConv(width, width))
            height = -(-height // 2)
        self.layers = nn.Sequential(*layers)
        self.score = nn.Linear(width, 1)
        self.classifier = nn.Linear(width, identities)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Two walks' maps [n, c, h, w] to scores [n] in (0, 1) and logits [n, k]."""
        found = self.layers(torch.cat([first, second], dim=1)).mean(dim=(2, 3))
        return torch.sigmoid(self.score(found).squeeze(1)), self.classifier(found)


def triples(labels: Tensor, first: int, n: int, turn: int) -> tuple[Tensor, Tensor, Tensor]:
    """A positive and a negative for each anchor, other ones in every turn.

    Args:
        labels: [m] of all sequences.
        first: place of the first anchor.
        n: number of anchors.
        turn: which positive and negative are taken.

    Returns:
        Their places, int64 [n] each, and float [n], 0 for an anchor that lacks one of them.
    """
    mine = labels[first : first + n]
    place = torch.arange(len(labels), device=labels.device)
    same = mine.unsqueeze(1) == labels.unsqueeze(0)
    itself = place.unsqueeze(0) == place[first : first + n].unsqueeze(1)
    found = []
    for wanted in (same & ~itself, ~same):
        count = wanted.sum(dim=1)
        # The wanted places first, in order; of them the one whose turn it is.
        order = (~wanted).to(torch.int8).argsort(dim=1, stable=True)
        found.append((order.gather(1, (turn % count.clamp(min=1)).unsqueeze(1)).squeeze(1), count))
    (positive, positives), (negative, negatives) = found
    return positive, negative, ((positives > 0) & (negatives > 0)).float()


class RelationNetworks(Method[RelationNetworksTerm]):
    """The term of a recipe: a relation network behind each stage, and one of distributions.

    The latter scores a sequence's distribution with the moving average of its identity's against
    that of another identity's.
    """

    average: Tensor

    def __init__(self, term: RelationNetworksTerm, networks: Networks) -> None:
        super().__init__(term, networks)
        student = networks.student
        shapes = stage_shapes(student)
        self.networks = nn.ModuleList(
            RelationNetwork(shape, shapes[-1][1], term.width, student.identities)
            for shape in reversed(shapes)
        )
        self.identity_score = nn.Linear(2 * student.identities, 1)
        rows = student.identities if term.average_weight else 0
        self.register_buffer("average", torch.eye(rows))

    def forward(self, lesson: Lesson) -> Tensor:
        """Anchors of this process, with positives and negatives of all."""
        labels = lesson.everyone(lesson.labels)
        n = len(lesson.labels)
        mine = slice(lesson.first, lesson.first + n)
        positive, negative, rows = triples(labels, lesson.first, n, lesson.step)
        stages = []
        for network, maps in zip(self.networks, reversed(lesson.student.stages), strict=True):
            pooled = lesson.everyone(maps.float().amax(dim=2))
            anchor = pooled[mine]
            scores, logits = network(anchor, pooled[positive])
            against, mixed = network(anchor, pooled[negative])
            stages.append(Relations(scores, against, logits, mixed))
        total = relational_loss(stages, lesson.labels, labels[negative], rows, self.term)
        if self.term.average_weight:
            total = total + self.term.average_weight * self._of_distributions(lesson, labels)
        return total

    def _of_distributions(self, lesson: Lesson, labels: Tensor) -> Tensor:
        """How unlike its identity's average a distribution is found, less how unlike another's."""
        logits = lesson.student.logits.float() * LOGIT_SCALE
        found = F.softmax(logits, dim=1).mean(dim=2)  # [n, k]
        identities = found.shape[1]
        if self.training:
            self._follow(lesson.everyone(found).detach(), labels)
        other = (lesson.labels + 1 + lesson.step % max(identities - 1, 1)) % identities
        own, strange = (
            torch.sigmoid(self.identity_score(torch.cat([found, self.average[whose]], dim=1)))
            for whose in (lesson.labels, other)
        )
        return (own - strange).mean()

    @torch.no_grad()
    def _follow(self, found: Tensor, labels: Tensor) -> None:
        """Move the averages of the identities in the batch towards their mean in it."""
        sums = torch.zeros_like(self.average).index_add_(0, labels, found)
        counts = labels.bincount(minlength=len(self.average)).unsqueeze(1)
        decay = self.term.average_decay
        moved = decay * self.average + (1 - decay) * sums / counts.clamp(min=1)
        self.average = torch.where(counts > 0, moved, self.average)

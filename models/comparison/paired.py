"""Which of two checkpoints finds enrolled people better: leave one out, paired, person by person.

Every sequence of a person who has another one is searched among all other sequences, once under
each checkpoint. The same searches meet the same gallery, so the difference is paired; the searches
of one person succeed and fail together, so its interval draws whole persons (percentile bootstrap).
Only numpy; embeddings are those that a service has stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.nearest import nearest

CONFIDENCE: Final = 0.95
LEAST_SUBJECTS: Final = 10
"""Fewer persons show nothing: the interval of a handful that agree by chance has no width."""

_REPLICATES = 2000


@dataclass(frozen=True, slots=True)
class Side:
    """What one checkpoint made of sequences: embeddings [n, p, c], and how it compares them."""

    embeddings: NDArray[np.float32]
    metric: Metric


@dataclass(frozen=True, slots=True)
class PairedRank1:
    """Two checkpoints on the same searches.

    Attributes:
        subjects: persons with two sequences at least; their sequences are the searches.
        searches: how many.
        rank1_new: share of searches whose most similar other sequence is the same person's.
        rank1_old: of the other checkpoint.
        difference: new less old.
        interval: of the difference, at `CONFIDENCE`.
        agreement: share of searches in which both name the same person first.
    """

    subjects: int
    searches: int
    rank1_new: float
    rank1_old: float
    difference: float
    interval: tuple[float, float]
    agreement: float

    @property
    def shows_better(self) -> bool:
        """Whether the new one is better beyond chance: the interval lies above 0, of enough."""
        return self.subjects >= LEAST_SUBJECTS and self.interval[0] > 0


def nearest_others(side: Side) -> NDArray[np.int64]:
    """For each of n sequences, at least 2, the most similar other one: its position [n]."""
    of_one = np.zeros(len(side.embeddings), np.int64)  # as if all were one person's
    among_all, _ = nearest(side.embeddings, of_one, side.metric)
    return among_all.index


def compare_rank1(new: Side, old: Side, subjects: NDArray[np.int64]) -> PairedRank1 | None:
    """Search every sequence among the others with both checkpoints.

    Returns None if no subject has two sequences.

    Args:
        new: of the checkpoint that may replace the other.
        old: of the other one, of the same sequences.
        subjects: whose each sequence is [n].

    Raises:
        ValueError: the shapes don't fit.
    """
    if not len(new.embeddings) == len(old.embeddings) == len(subjects):
        raise ValueError("both checkpoints must have embedded the same sequences")
    _, whose, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    asked = counts[whose] >= 2
    if not asked.any():
        return None
    named = [whose[nearest_others(side)][asked] for side in (new, old)]
    truth = whose[asked]
    hits_new, hits_old = (found == truth for found in named)
    difference = hits_new.astype(np.float64) - hits_old
    return PairedRank1(
        subjects=int((counts >= 2).sum()),
        searches=int(asked.sum()),
        rank1_new=float(hits_new.mean()),
        rank1_old=float(hits_old.mean()),
        difference=float(difference.mean()),
        interval=_interval(difference, truth),
        agreement=float((named[0] == named[1]).mean()),
    )


def _interval(difference: NDArray[np.float64], subjects: NDArray[np.int64]) -> tuple[float, float]:
    _, whose, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    sums = np.bincount(whose, weights=difference)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _REPLICATES)
    means = (drawn @ sums) / (drawn @ counts)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)

"""How high strangers score: the rate that one comparison may have, and the tail of many.

**From a search to a comparison.** Let F(t) be the rate at which a stranger reaches similarity
t with *one* enrolled subject. Were the N comparisons of a search independent, then

    FPIR_N(t) = 1 - (1 - F(t))^N,   so   F(t) = 1 - (1 - target)^(1/N)

gives the threshold. They are not independent: some probes resemble many people. Then FPIR_N is the
mean over probes of 1 - (1 - F_probe)^N, and because that is concave in F, Jensen's inequality makes
the formula an upper bound: the promise errs to the safe side.

**Beyond what was observed** the upper tail is a generalised Pareto distribution above a high
quantile u, with rate F(u) there (extreme value theory: Pickands 1975), fitted by
probability-weighted moments (Hosking & Wallis, Technometrics 29, 1987):

    F(t) = F(u) (1 + xi (t - u) / sigma)^(-1/xi)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TAIL_SHARE = 0.01
_TAIL_LEAST = 200
_TAIL_MOST = 20_000


def comparison_rate(target_fpir: float, gallery_subjects: int) -> float:
    """The rate a single comparison may have: `1 - (1 - target)^(1/N)`.

    Raises:
        ValueError: the target is not a rate between 0 and 1, or the gallery is empty.
    """
    if not 0 < target_fpir < 1 or gallery_subjects < 1:
        raise ValueError(f"FPIR {target_fpir} with {gallery_subjects} enrolled")
    return -math.expm1(math.log1p(-target_fpir) / gallery_subjects)


@dataclass(frozen=True, slots=True)
class GeneralisedPareto:
    """Excesses over a high quantile; without any width when `scale` is 0."""

    shape: float
    scale: float

    @classmethod
    def fit(cls, excess: NDArray[np.float64], counts: NDArray[np.float64]) -> GeneralisedPareto:
        """From ascending excesses [n] and how often each counts [n].

        Probability-weighted moments with plotting positions at the middle of each step.
        """
        total = counts.sum()
        if total <= 0:
            return cls(0.0, 0.0)
        above = 1 - (np.cumsum(counts) - counts / 2) / total
        first = float(counts @ excess / total)
        second = float(counts @ (excess * above) / total)
        spread = first - 2 * second
        if spread <= 1e-12 * max(first, 1e-300):
            return cls(0.0, 0.0)
        return cls(2 - first / spread, 2 * first * second / spread)

    def exceeded(self, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """The excess that is exceeded at each rate, a share of those in the tail [k]."""
        if self.scale == 0:
            return np.zeros_like(rates)
        if abs(self.shape) < 1e-9:
            return -self.scale * np.log(rates)
        return self.scale / self.shape * np.expm1(-self.shape * np.log(rates))


class ImpostorTail:
    """A generalised Pareto distribution over the highest impostor similarities."""

    def __init__(self, similarities: NDArray[np.floating[Any]]) -> None:
        """Keep the highest hundredth (200 at least, or half of few; 20,000 at most) of [n].

        Raises:
            ValueError: fewer than two similarities.
        """
        total = len(similarities)
        if total < 2:
            raise ValueError(f"{total} impostor comparisons have no tail")
        count = min(max(_TAIL_LEAST, int(total * _TAIL_SHARE)), _TAIL_MOST, total // 2)
        highest = np.argpartition(similarities, total - count - 1)[total - count - 1 :]
        ascending = highest[np.argsort(similarities[highest], kind="stable")]
        self.members: NDArray[np.int64] = ascending[1:]
        """Indices of the similarities in the tail, ascending in similarity [count]."""
        self._edge = float(similarities[ascending[0]])
        self._excess = similarities[self.members].astype(np.float64) - self._edge
        self._total = total

    @property
    def rate(self) -> float:
        """The share of all comparisons that is in the tail: no higher rate can be asked for."""
        return len(self.members) / self._total

    def thresholds(
        self,
        rates: Sequence[float],
        counts: NDArray[np.float64] | None = None,
        total: float | None = None,
    ) -> list[float]:
        """The similarities that a comparison reaches with these probabilities, at most 1.

        Args:
            rates: each above 0 and at most `rate`.
            counts: how often each of `members` counts in a replicate; once by default.
            total: how many comparisons the replicate has in all.

        Raises:
            ValueError: a rate lies outside the tail.
        """
        if any(not 0 < rate <= self.rate for rate in rates):
            raise ValueError(f"rates {list(rates)} are not all in the tail of {self.rate:.3g}")
        if counts is None or total is None:
            counts, total = np.ones(len(self.members)), float(self._total)
        tail_rate = float(counts.sum()) / total
        if tail_rate == 0:
            return [self._edge] * len(rates)
        fitted = GeneralisedPareto.fit(self._excess, counts)
        excess = fitted.exceeded(np.asarray(rates) / tail_rate)
        # Both similarities end at 1, whatever a heavy-tailed fit believes.
        return [min(1.0, self._edge + float(value)) for value in excess]

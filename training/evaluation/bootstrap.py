"""Intervals: resampling of subjects, and Wilson's where trials are independent.

Sequences of one person succeed and fail together, so whole subjects are drawn, with all that was
asked about them. The gallery stays as it is: an interval tells how the figure would move with other
people asking, not with other people enrolled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["subject bootstrap", "wilson", "none"]


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made.

    Attributes:
        seed: of the draw of subjects; two evaluations with one seed draw alike, so they pair.
        replicates: how many draws.
        confidence: share of replicates inside the interval.
    """

    seed: int = 0
    replicates: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.replicates < 1:
            raise ValueError(f"replicates must be at least 1, got {self.replicates}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval; the bounds are None if there is nothing to resample."""

    value: float
    low: float | None = None
    high: float | None = None
    method: Method = "none"


def subject_weights(subjects: int, resampling: Resampling) -> NDArray[np.float64]:
    """How often each subject is drawn in each replicate [b, subjects].

    Raises:
        ValueError: there is no subject.
    """
    if subjects < 1:
        raise ValueError("there is no subject to resample")
    rng = np.random.default_rng(resampling.seed)
    draws = rng.multinomial(subjects, np.full(subjects, 1 / subjects), resampling.replicates)
    return draws.astype(np.float64)


def percentile_estimate(
    value: float, replicates: NDArray[np.float64], confidence: float
) -> Estimate:
    """The percentile interval of replicates [b]; replicates that are NaN say nothing."""
    known = replicates[np.isfinite(replicates)]
    if not len(known) or not math.isfinite(value):
        return Estimate(value)
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), "subject bootstrap")


def wilson_estimate(successes: float, trials: int, confidence: float) -> Estimate:
    """Wilson's score interval for a share of independent trials.

    Source: E. B. Wilson, JASA 22 (1927). Unlike a bootstrap it stays honest at 0 and at 1.

    Raises:
        ValueError: no trial, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), "wilson")

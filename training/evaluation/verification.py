"""Verification (1:1): false match and false non-match over the threshold (ISO/IEC 19795-1).

A comparison matches when its similarity is at least the threshold. FMR is the share of impostor
comparisons that match, FNMR the share of genuine ones that do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from training.evaluation.bootstrap import (
    Estimate,
    Resampling,
    percentile_estimate,
    subject_weights,
)
from training.evaluation.scores import SubjectScores

FALSE_MATCH_RATES: Final = (1e-1, 1e-2, 1e-3)

_CURVE_POINTS = 65


@dataclass(frozen=True, slots=True)
class VerificationPoint:
    """FNMR at the lowest threshold whose FMR is no higher than the target.

    `fnmr` is None if there are fewer impostor comparisons than the target needs to show one.
    """

    target_fmr: float
    threshold: float
    fnmr: Estimate | None


@dataclass(frozen=True, slots=True)
class Verification:
    """Error rates of probe-against-subject comparisons.

    Attributes:
        genuine: number of comparisons of one person.
        impostor: number of comparisons of two people, of which at most half a million are drawn.
        equal_error_rate: where FMR and FNMR meet.
        points: FNMR at the usual FMR.
        curve: (threshold, FMR, FNMR), thresholds ascending, thinned for storing.
    """

    genuine: int
    impostor: int
    equal_error_rate: Estimate
    points: tuple[VerificationPoint, ...]
    curve: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, eq=False)
class ErrorRates:
    """FMR and FNMR at every threshold at which either changes.

    Attributes:
        thresholds: ascending, each distinct similarity and then infinity [t].
        fmr: descending from 1 to 0 [t].
        fnmr: ascending from 0 to 1 [t].
    """

    thresholds: NDArray[np.float64]
    fmr: NDArray[np.float64]
    fnmr: NDArray[np.float64]

    def equal_error_rate(self) -> float:
        """Half-way between FMR and FNMR at the threshold where they are nearest to each other."""
        nearest = int(np.argmin(np.abs(self.fmr - self.fnmr)))
        return float(self.fmr[nearest] + self.fnmr[nearest]) / 2

    def at_fmr(self, target: float) -> tuple[float, float]:
        """Threshold and FNMR at the lowest threshold with FMR at most `target`."""
        index = int(np.argmax(self.fmr <= target))
        return float(self.thresholds[index]), float(self.fnmr[index])


class _Comparisons:
    """All comparisons sorted once, so that rates under any weights are two running sums."""

    def __init__(self, similarities: NDArray[np.floating[Any]], genuine: NDArray[np.bool_]) -> None:
        self.order = np.argsort(similarities, kind="stable")
        values = similarities[self.order].astype(np.float64)
        self._genuine = genuine[self.order]
        self._starts = np.flatnonzero(np.r_[True, values[1:] > values[:-1]])
        self._thresholds = np.r_[values[self._starts], np.inf]

    def rates(self, weights: NDArray[np.float64]) -> ErrorRates:
        """Rates when each sorted comparison counts `weights` times.

        Raises:
            ValueError: no genuine or no impostor comparison counts.
        """
        genuine = np.where(self._genuine, weights, 0.0)
        below_genuine = np.r_[0.0, np.cumsum(genuine)]
        below_impostor = np.r_[0.0, np.cumsum(weights - genuine)]
        if not (below_genuine[-1] > 0 and below_impostor[-1] > 0):
            raise ValueError("error rates need genuine and impostor comparisons")
        ends = np.r_[self._starts, len(weights)]
        return ErrorRates(
            self._thresholds,
            (below_impostor[-1] - below_impostor[ends]) / below_impostor[-1],
            below_genuine[ends] / below_genuine[-1],
        )


def error_rates(genuine: NDArray[np.float64], impostor: NDArray[np.float64]) -> ErrorRates:
    """FMR and FNMR of plain lists of similarities.

    Raises:
        ValueError: one of the lists is empty.
    """
    similarities = np.r_[genuine, impostor].astype(np.float64)
    kind = np.r_[np.ones(len(genuine), np.bool_), np.zeros(len(impostor), np.bool_)]
    return _Comparisons(similarities, kind).rates(np.ones(len(similarities)))


def verify(
    scores: SubjectScores, resampling: Resampling, *, most_impostors: int = 500_000
) -> Verification | None:
    """Error rates with intervals by drawing subjects, as probes and as enrolled alike.

    A comparison of subjects i and j counts as often as i was drawn times as often as j was.
    Beyond `most_impostors` impostor comparisons are drawn: every replicate walks all of them once.
    Returns None when there is no genuine or no impostor comparison.
    """
    comparisons = scores.genuine
    genuine = np.flatnonzero(comparisons)
    impostor = np.flatnonzero(~comparisons)
    if not (len(genuine) and len(impostor)):
        return None
    if len(impostor) > most_impostors:
        rng = np.random.default_rng(resampling.seed)
        impostor = rng.choice(impostor, most_impostors, replace=False)
    chosen = np.r_[genuine, impostor]
    probe, column = np.divmod(chosen, comparisons.shape[1])
    ascending = _Comparisons(
        scores.similarities[probe, column], np.arange(len(chosen)) < len(genuine)
    )
    point = ascending.rates(np.ones(len(chosen)))
    probe_subject = scores.probe_subject[probe][ascending.order]
    enrolled_subject = scores.enrolled_subject[column][ascending.order]
    same = probe_subject == enrolled_subject
    supported = [target for target in FALSE_MATCH_RATES if len(impostor) * target >= 1]
    equal: list[float] = []
    fnmr: dict[float, list[float]] = {target: [] for target in supported}
    for drawn in subject_weights(scores.subjects, resampling):
        # A genuine comparison is of one subject: drawn twice it counts twice, not four times.
        counts = drawn[probe_subject] * np.where(same, 1.0, drawn[enrolled_subject])
        if not (counts[same].any() and counts[~same].any()):
            continue
        rates = ascending.rates(counts)
        equal.append(rates.equal_error_rate())
        for target in supported:
            fnmr[target].append(rates.at_fmr(target)[1])
    points = []
    for target in FALSE_MATCH_RATES:
        threshold, value = point.at_fmr(target)
        estimate = (
            percentile_estimate(value, np.asarray(fnmr[target]), resampling.confidence)
            if target in fnmr
            else None
        )
        points.append(VerificationPoint(target, threshold, estimate))
    return Verification(
        len(genuine),
        len(impostor),
        percentile_estimate(point.equal_error_rate(), np.asarray(equal), resampling.confidence),
        tuple(points),
        thin_curve(point.thresholds, point.fmr, point.fnmr),
    )


def thin_curve(
    thresholds: NDArray[np.float64], falling: NDArray[np.float64], rising: NDArray[np.float64]
) -> tuple[tuple[float, float, float], ...]:
    """About a hundred points of two error curves, denser where either is small.

    Points are taken at evenly spaced levels of both rates on a logarithmic scale, so that the
    low-error ends, where systems work, keep their shape. The infinite threshold is left out.
    """
    finite = len(thresholds) - 1
    levels = np.geomspace(1e-6, 1, _CURVE_POINTS)
    picks = np.r_[
        0,
        finite - 1,
        np.searchsorted(-falling[:finite], -levels),
        np.searchsorted(rising[:finite], levels),
    ]
    picks = np.unique(np.clip(picks, 0, finite - 1))
    return tuple((float(thresholds[i]), float(falling[i]), float(rising[i])) for i in picks)

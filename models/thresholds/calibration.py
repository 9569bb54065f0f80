"""The threshold at which a gallery falsely matches a stranger with at most a given probability.

**What a stranger meets.** Every enrolled sequence is searched among the sequences of the other
subjects, and its highest similarity kept: that is what a person who is not enrolled would have met,
with this very gallery and with however many sequences each subject has. No two comparisons are
taken to be independent. The searches of one subject succeed and fail together, so each subject
weighs the same, and the interval draws whole subjects while the gallery stays as it is: half as
many as there are, because the highest similarities come in pairs (whom A resembles most often
resembles A most), so that S searches tell as much as S / 2 would that knew nothing of each other.

**One subject fewer.** The subject who plays the stranger is missing from the gallery, which then
has S - 1 subjects. So the rate asked for is `1 - (1 - target)^((S - 1) / S)`: as if every subject
added the same to the chance of a false match.

**How far the searches carry.** With S subjects there were S strangers.

observed       S x target >= 10: the threshold that this share of the searches reaches.
extrapolated   S >= 20 and S x target >= 0.2: a distribution over the highest searches (a tenth, or
               as many as 12 strangers made, but at most half). Of the generalised Pareto and the
               exponential one of the same mean the higher threshold counts, because so few
               searches cannot show that similarities end somewhere; the interval has both.
background     else the searches cannot show the rate. The checkpoint's card has thresholds from
               people it was measured on; each is one rate of a single comparison (see
               `impostors`), and between those the similarity is linear in the rate's logarithm.
               The higher of that and of the gallery's own extrapolation (exponential) decides; the
               interval has both, and with fewer than 3 subjects there is none. Where
               that extrapolation ends at 1, nothing can be promised.

On simulated people (6 walks each, 40 galleries a row: the mean rate that strangers never seen met,
and how often the interval held the promised one): 25 subjects 10.2 % for 10 % (97 %), 0.5 % for 1 %
(100 %); 50 subjects 3.4 % for 3 % (93 %), 1.0 % for 1 % (97 %); 100 subjects 10.2 % for 10 %
(93 %), 1.0 % for 1 % (95 %); 300 subjects 1.0 % for 1 % (95 %), 0.07 % for 0.1 % (97 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from models import Progress
from models.card import CardThreshold, Metric
from models.comparison.nearest import nearest
from models.thresholds.impostors import GeneralisedPareto, comparison_rate

Method = Literal["observed", "extrapolated", "background"]

CONFIDENCE: Final = 0.95
CURVE: Final = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""The rates of a curve."""
OBSERVED_FALSE_MATCHES: Final = 10
LEAST_SUBJECTS: Final = 20
LEAST_EXPECTED: Final = 0.2

_TAIL_STRANGERS = 12
_TAIL_SHARE = 0.1
_TAIL_MOST = 0.5
_REPLICATES = 1000
_LEAST_DRAWN = 3


class CannotCalibrate(ValueError):
    """Neither the gallery nor the card can show the rate; the message says what would."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold, and how it was found.

    Attributes:
        threshold: similarity.
        interval: of the threshold, at `CONFIDENCE`; None with fewer than 3 subjects.
        method: see the module.
    """

    threshold: float
    interval: tuple[float, float] | None
    method: Method


def stranger_similarities(
    embeddings: NDArray[np.float32],
    subjects: NDArray[np.int64],
    metric: Metric,
    progress: Progress = lambda _done: None,
) -> NDArray[np.float64]:
    """The highest similarity of each sequence to one of another subject.

    Exact, in blocks: see `models.comparison.nearest`.

    Args:
        embeddings: [n, p, c].
        subjects: whose each sequence is [n].
        metric: how the checkpoint compares.
        progress: told how many sequences are done, block by block.

    Returns:
        float64 [n]; -inf if no other subject is enrolled.

    Raises:
        ValueError: the shapes don't fit.
    """
    _, others = nearest(embeddings, subjects, metric, progress)
    return others.similarity


def calibrate(
    similarities: NDArray[np.float64],
    subjects: NDArray[np.int64],
    target_fpir: float,
    background: Iterable[CardThreshold] = (),
    *,
    seed: int = 0,
) -> Calibration:
    """The threshold for a target rate of false matches, for the gallery that was searched.

    Args:
        similarities: of `stranger_similarities` [n].
        subjects: whose each sequence is [n].
        target_fpir: between 0 and 1.
        background: the card's thresholds.
        seed: of the draw of subjects.

    Raises:
        CannotCalibrate: the gallery is empty, or too small and the card cannot help.
        ValueError: the target is not a rate.
    """
    if not 0 < target_fpir < 1:
        raise ValueError(f"{target_fpir} is not a rate between 0 and 1")
    names, of = np.unique(subjects, return_inverse=True)
    count = len(names)
    if count == 0:
        raise CannotCalibrate("nobody is enrolled, so nobody can be matched falsely")
    searches = _Searches(similarities, of, target_fpir) if count > 1 else None
    expected = count * target_fpir
    if searches is not None and count >= LEAST_SUBJECTS and expected >= LEAST_EXPECTED:
        observed = expected >= OBSERVED_FALSE_MATCHES
        find = searches.observed if observed else searches.extrapolated
        return Calibration(
            find(np.ones(count))[1],
            _interval(find, count, seed),
            "observed" if observed else "extrapolated",
        )
    known = background_threshold(background, target_fpir, count)
    if known is None:
        needed = max(LEAST_SUBJECTS, math.ceil(LEAST_EXPECTED / target_fpir))
        raise CannotCalibrate(
            f"{count} enrolled subjects cannot show a rate of {target_fpir:g}, and the model's "
            f"card has no thresholds that do; enrol {needed} subjects or ask for a higher rate"
        )
    if searches is None:
        return Calibration(known, None, "background")
    own = searches.extrapolated(np.ones(count))[1]
    if own >= 1:
        raise CannotCalibrate(
            f"{count} enrolled subjects are too few for a rate of {target_fpir:g}: some of them "
            "are so alike that no similarity promises it; enrol "
            f"{LEAST_SUBJECTS} subjects or ask for a higher rate"
        )
    interval = None
    if count >= _LEAST_DRAWN:
        low, high = _interval(searches.extrapolated, count, seed)
        interval = min(low, known), max(high, known)
    return Calibration(max(known, own), interval, "background")


def calibration_curve(
    similarities: NDArray[np.float64],
    subjects: NDArray[np.int64],
    background: Sequence[CardThreshold] = (),
) -> dict[float, Calibration]:
    """What `calibrate` finds for each rate of `CURVE`, highest first.

    A rate that neither the gallery nor the card can show is left out. Each is found by itself, with
    the method that fits it, so where the methods change the thresholds need not rise.
    """
    found: dict[float, Calibration] = {}
    for target in CURVE:
        # One rate that cannot be shown says nothing of the others.
        with suppress(CannotCalibrate):
            found[target] = calibrate(similarities, subjects, target, background)
    return found


def background_threshold(
    known: Iterable[CardThreshold], target_fpir: float, gallery_subjects: int
) -> float | None:
    """The threshold for another rate and gallery size, interpolated between a card's thresholds.

    Returns None if the card's thresholds do not reach the rate.

    A rate above the card's highest gets the threshold for that one, which is too high for it and so
    safe; a rate below its lowest gets none.
    """
    points = sorted(
        (comparison_rate(item.target_fpir, item.gallery_subjects), item.threshold) for item in known
    )
    rate = comparison_rate(target_fpir, gallery_subjects)
    if not points or rate < points[0][0] * (1 - 1e-9):
        return None
    rates, thresholds = np.array(points).T
    # A lower rate never has a lower threshold, however the card's were rounded.
    falling = np.maximum.accumulate(thresholds[::-1])[::-1]
    return float(np.interp(math.log(rate), np.log(rates), falling))


class _Searches:
    """The searches of strangers, lowest similarity first."""

    def __init__(
        self, similarities: NDArray[np.float64], subject: NDArray[np.int64], target_fpir: float
    ) -> None:
        order = np.argsort(similarities, kind="stable")
        self._count = count = int(subject.max()) + 1
        self._values = similarities[order]
        self._subject = subject[order]
        self._share = 1 / np.bincount(subject)[self._subject]
        self._rate = -math.expm1(math.log1p(-target_fpir) * (count - 1) / count)
        self._tail = max(self._rate, min(_TAIL_MOST, max(_TAIL_SHARE, _TAIL_STRANGERS / count)))

    def observed(self, weights: NDArray[np.float64]) -> tuple[float, float]:
        """The lowest similarity that no more than the rate reaches, of subjects so weighted.

        As a pair of equals, because `extrapolated` has two.
        """
        above = self._reaching(self._weighted(weights))
        position = self._first_at_most(above, self._rate)
        if position == len(self._values):  # more than the rate share the highest similarity
            found = float(np.nextafter(self._values[-1], np.inf))
        else:
            found = float(self._values[position])
        return found, found

    def extrapolated(self, weights: NDArray[np.float64]) -> tuple[float, float]:
        """What the tail reaches at the rate, at most 1: by the lower law and by the higher."""
        each = self._weighted(weights)
        above = self._reaching(each)
        position = self._first_at_most(above, self._tail)
        edge = max(position - 1, 0)
        tail = slice(edge + 1, None)
        rate = float(each[tail].sum())
        if rate <= self._rate:  # many share the highest similarity
            return self.observed(weights)
        excess = self._values[tail] - self._values[edge]
        mean = float(each[tail] @ excess) / rate
        laws = [GeneralisedPareto(0.0, mean)]
        if self._count >= LEAST_SUBJECTS:  # fewer show how far similarities spread, but no shape
            laws.append(GeneralisedPareto.fit(excess, each[tail]))
        beyond = sorted(float(law.exceeded(np.array([self._rate / rate]))[0]) for law in laws)
        start = float(self._values[edge])
        return min(1.0, start + beyond[0]), min(1.0, start + beyond[-1])

    def _weighted(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much each search counts; all of them together 1."""
        each: NDArray[np.float64] = weights[self._subject] * self._share / weights.sum()
        return each

    def _reaching(self, each: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of searches that reach each value; equal values are reached alike."""
        reached = np.cumsum(each[::-1])[::-1]
        shares: NDArray[np.float64] = reached[np.searchsorted(self._values, self._values)]
        return shares

    def _first_at_most(self, shares: NDArray[np.float64], rate: float) -> int:
        return int(np.count_nonzero(shares > rate * (1 + 1e-12)))


def _interval(
    find: Callable[[NDArray[np.float64]], tuple[float, float]], subjects: int, seed: int
) -> tuple[float, float]:
    """Percentiles over draws of half of the subjects, and over the laws that may hold."""
    weights = np.random.default_rng(seed).multinomial(
        max(2, subjects // 2), np.full(subjects, 1 / subjects), _REPLICATES
    )
    drawn = np.array([find(row.astype(np.float64)) for row in weights])
    tail = (1 - CONFIDENCE) / 2
    return float(np.quantile(drawn[:, 0], tail)), float(np.quantile(drawn[:, 1], 1 - tail))

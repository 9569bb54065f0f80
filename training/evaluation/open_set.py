"""Open-set identification (1:N): the probe may be of nobody who is enrolled (ISO/IEC 19795-1).

A search returns the best subject when its similarity is at least the threshold. FPIR is the share
of non-mated searches that return anybody; FNIR the share of mated searches that don't return the
mate, because it is below the threshold or behind somebody else.

**Searches.** Each probe is searched twice: in the whole gallery (mated), and in the gallery without
its own subject (non-mated). So every subject plays the stranger once, and nothing depends on how
the enrolled are drawn.

**Thresholds for other gallery sizes.** The gallery at hand is rarely the gallery that will be
searched. `models.thresholds.impostors` says how the rate of a search becomes that of one
comparison, and how the tail of all comparisons carries beyond what was observed: for large
N the rate needed is far below it (1e-7 for 0.1 % in 10,000).

How far that carries, on simulated similarities with normal tails and 200,000 comparisons: for a
promised FPIR of 1 % the median FPIR of 100 repetitions is 1.0 % with 100 enrolled, 1.3 % with 1,000
and 2.1 % with 10,000 (5 to 95 %: 0.7–1.4, 0.6–2.8, 0.5–7.6). From 20,000 comparisons the spread is
twice that. So an extrapolated threshold is worth no more than its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.thresholds.impostors import ImpostorTail, comparison_rate
from training.evaluation.bootstrap import (
    Estimate,
    Resampling,
    percentile_estimate,
    subject_weights,
)
from training.evaluation.scores import SubjectScores
from training.evaluation.verification import thin_curve

TARGET_FPIRS: Final = (1e-1, 1e-2, 1e-3)
GALLERY_SIZES: Final = (100, 1_000, 10_000)


@dataclass(frozen=True, slots=True)
class SearchPoint:
    """What was observed at the lowest threshold whose FPIR is no higher than the target.

    `fnir` is None if there are too few searches to see one false positive at that rate.
    """

    target_fpir: float
    threshold: float
    fnir: Estimate | None


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold for a gallery of another size.

    Attributes:
        gallery_subjects: enrolled.
        target_fpir: promised at most.
        threshold: similarity, with its interval.
        fnir: share of mated searches whose mate is below it. Being outranked by a stranger above
            the threshold comes on top, and is rarer than `target_fpir`.
        extrapolated: the rate needed lies below what the comparisons could show.
    """

    gallery_subjects: int
    target_fpir: float
    threshold: Estimate
    fnir: Estimate
    extrapolated: bool


@dataclass(frozen=True, slots=True)
class OpenSet:
    """Open-set errors observed with the gallery at hand, and thresholds for others.

    Attributes:
        gallery_subjects: enrolled in a mated search; a non-mated one meets one fewer, unless its
            subject never was enrolled.
        mated: number of mated searches.
        non_mated: number of non-mated searches.
        rank1: share of mated searches with the mate in front, whatever the threshold.
        points: FNIR at the usual FPIR.
        thresholds: for the usual gallery sizes and FPIR; none from a single comparison of two
            people.
        curve: (threshold, FPIR, FNIR), thresholds ascending, thinned for storing.
    """

    gallery_subjects: int
    mated: int
    non_mated: int
    rank1: float
    points: tuple[SearchPoint, ...]
    thresholds: tuple[Threshold, ...]
    curve: tuple[tuple[float, float, float], ...]


def search(
    scores: SubjectScores,
    resampling: Resampling,
    *,
    gallery_sizes: Sequence[int] = GALLERY_SIZES,
    targets: Sequence[float] = TARGET_FPIRS,
) -> OpenSet | None:
    """Open-set errors and thresholds, with intervals by drawing the subjects who are searched.

    Returns None when there is no mated search, or fewer than two subjects are enrolled.
    """
    enrolled = scores.similarities.shape[1]
    mated = scores.own >= 0
    if enrolled < 2 or not mated.any():
        return None
    genuine = scores.genuine
    mate = np.where(genuine, scores.similarities, -np.inf).max(1).astype(np.float64)
    stranger = np.where(genuine, -np.inf, scores.similarities).max(1).astype(np.float64)
    # A mate that only equals a stranger is not in front of it.
    returned = np.where(mate > stranger, mate, -np.inf)

    weights = subject_weights(scores.subjects, resampling)
    probe_weights = weights[:, scores.probe_subject]
    thresholds = np.r_[np.unique(np.r_[stranger, returned[np.isfinite(returned)]]), np.inf]
    fpir = _share_reaching(stranger, thresholds)
    fnir = 1 - _share_reaching(returned[mated], thresholds)

    points = []
    for target in targets:
        index = int(np.argmax(fpir <= target))
        estimate = None
        if len(stranger) * target >= 1:
            replicates = _observed_fnir(stranger, returned, mated, probe_weights, target)
            estimate = percentile_estimate(float(fnir[index]), replicates, resampling.confidence)
        points.append(SearchPoint(target, float(thresholds[index]), estimate))

    return OpenSet(
        enrolled,
        int(mated.sum()),
        len(stranger),
        float(np.isfinite(returned[mated]).mean()),
        tuple(points),
        _thresholds(scores, mate, weights, resampling, gallery_sizes, targets),
        thin_curve(thresholds, fpir, fnir),
    )


def _thresholds(
    scores: SubjectScores,
    mate: NDArray[np.float64],
    weights: NDArray[np.float64],
    resampling: Resampling,
    gallery_sizes: Sequence[int],
    targets: Sequence[float],
) -> tuple[Threshold, ...]:
    probe, column = np.nonzero(~scores.genuine)
    if len(probe) < 2:  # one comparison of two people has no tail
        return ()
    tail = ImpostorTail(scores.similarities[probe, column])
    asked_subject = scores.probe_subject[probe[tail.members]]
    other_subject = scores.enrolled_subject[column[tail.members]]
    mated = np.isfinite(mate)
    mates, mate_subject = mate[mated], scores.probe_subject[mated]

    cases = [
        (size, target)
        for size in gallery_sizes
        for target in targets
        if comparison_rate(target, size) <= tail.rate
    ]
    rates = [comparison_rate(target, size) for size, target in cases]
    found = tail.thresholds(rates)
    missed = [float((mates < threshold).mean()) for threshold in found]
    drawn_thresholds = np.full((len(weights), len(cases)), np.nan)
    drawn_missed = np.full((len(weights), len(cases)), np.nan)
    for row, drawn in enumerate(weights):
        own = drawn[mate_subject]
        # All pairs of a drawn probe and a drawn enrolled subject, less those of one person.
        total = drawn[scores.probe_subject].sum() * drawn[scores.enrolled_subject].sum()
        total -= (own * own).sum()
        if total <= 0 or own.sum() <= 0:
            continue
        pairs = drawn[asked_subject] * drawn[other_subject]
        drawn_thresholds[row] = tail.thresholds(rates, pairs, float(total))
        below = mates[:, None] < drawn_thresholds[row][None, :]
        drawn_missed[row] = own @ below / own.sum()
    return tuple(
        Threshold(
            size,
            target,
            percentile_estimate(found[i], drawn_thresholds[:, i], resampling.confidence),
            percentile_estimate(missed[i], drawn_missed[:, i], resampling.confidence),
            extrapolated=rates[i] * len(probe) < 1,
        )
        for i, (size, target) in enumerate(cases)
    )


def _share_reaching(
    values: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> NDArray[np.float64]:
    below = np.searchsorted(np.sort(values), thresholds)
    return (len(values) - below) / len(values)


def _observed_fnir(
    stranger: NDArray[np.float64],
    returned: NDArray[np.float64],
    mated: NDArray[np.bool_],
    weights: NDArray[np.float64],
    target: float,
) -> NDArray[np.float64]:
    """FNIR in each replicate [b], at that replicate's own threshold for the target.

    Args:
        stranger: best similarity of a non-mated search [n].
        returned: similarity of the mate where it is in front, else -inf [n].
        mated: [n].
        weights: how often each probe counts [b, n].
        target: FPIR.
    """
    order = np.argsort(stranger, kind="stable")
    values = stranger[order]
    drawn = weights[:, order]
    # A replicate may draw nobody who was searched: then there is no rate, and asked is 0 below.
    searches = np.maximum(drawn.sum(1, keepdims=True), 1)
    reached = np.cumsum(drawn[:, ::-1], axis=1)[:, ::-1] / searches
    # Twins of a value reach it too, so a value counts what its first twin does.
    reached = reached[:, np.searchsorted(values, values)]
    # The threshold lies just above the last value that too many strangers reach.
    last = values[np.maximum(np.count_nonzero(reached > target, axis=1) - 1, 0)]
    hit = mated & (returned > last[:, None])
    asked = (weights * mated).sum(1)
    missed = asked - (weights * hit).sum(1)
    fnir = np.full(len(asked), np.nan)
    np.divide(missed, asked, out=fnir, where=asked > 0)
    return fnir

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.thresholds.impostors import comparison_rate
from training.evaluation.bootstrap import Resampling, subject_weights
from training.evaluation.open_set import search
from training.evaluation.scores import SubjectScores

FEW = Resampling(replicates=30)


def scores_of(
    subjects: int, walks: int, seed: int, *, shift: float = 0.3, strangers: int = 0
) -> SubjectScores:
    """Similarities between 0 and 1; the own subject `shift` higher; some never enrolled."""
    rng = np.random.default_rng(seed)
    probe = np.repeat(np.arange(subjects + strangers), walks)
    similarities = 0.1 * rng.standard_normal((len(probe), subjects)) + 0.4
    own = np.where(probe < subjects, probe, -1)
    enrolled = own >= 0
    similarities[enrolled, own[enrolled]] += shift
    return SubjectScores(
        similarities.astype(np.float32), own, probe, np.arange(subjects), subjects + strangers
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), strangers=st.integers(0, 3))
def test_searches_equal_a_loop_that_takes_the_own_subject_out(seed: int, strangers: int) -> None:
    scores = scores_of(6, 3, seed, shift=0.1, strangers=strangers)
    found = search(scores, FEW, targets=(0.3, 0.1))
    assert found is not None
    for point in found.points:
        false, missed, mated = 0, 0, 0
        for row, own in zip(scores.similarities, scores.own, strict=True):
            others = [value for column, value in enumerate(row) if column != own]
            false += max(others) >= point.threshold
            if own >= 0:
                mated += 1
                missed += not (row[own] > max(others) and row[own] >= point.threshold)
        assert false / len(scores.own) <= point.target_fpir
        assert point.fnir is not None
        assert point.fnir.value == pytest.approx(missed / mated)
        assert (found.mated, found.non_mated) == (mated, len(scores.own))


def test_a_lower_threshold_would_break_the_promise() -> None:
    scores = scores_of(8, 4, 0)
    found = search(scores, FEW, targets=(0.1,))
    assert found is not None
    stranger = np.where(scores.genuine, -np.inf, scores.similarities).max(1)
    below = np.nextafter(np.float32(found.points[0].threshold), np.float32(-1))
    values = np.unique(np.r_[stranger, scores.similarities[scores.genuine]])
    lower = values[values < below].max()
    assert (stranger >= lower).mean() > 0.1


def test_replicates_equal_repeating_the_drawn_searches() -> None:
    scores = scores_of(7, 3, 1, shift=0.1)
    resampling = Resampling(replicates=40, confidence=0.9)
    found = search(scores, resampling, targets=(0.2,))
    assert found is not None
    fnir = []
    for drawn in subject_weights(7, resampling):
        rows = np.repeat(np.arange(21), drawn[scores.probe_subject].astype(int))
        repeated = SubjectScores(
            scores.similarities[rows],
            scores.own[rows],
            scores.probe_subject[rows],
            scores.enrolled_subject,
            7,
        )
        again = search(repeated, Resampling(replicates=1), targets=(0.2,))
        assert again is not None
        assert again.points[0].fnir is not None
        fnir.append(again.points[0].fnir.value)
    estimate = found.points[0].fnir
    assert estimate is not None
    low, high = np.quantile(fnir, [0.05, 0.95])
    assert estimate.low == pytest.approx(low)
    assert estimate.high == pytest.approx(high)


def test_rates_that_too_few_searches_could_show_are_not_reported() -> None:
    found = search(scores_of(5, 4, 0), FEW)
    assert found is not None
    assert [point.fnir is None for point in found.points] == [False, True, True]


@pytest.mark.parametrize("size", [100, 1000])
def test_the_promised_rate_is_kept_on_strangers_never_seen(size: int) -> None:
    calibration = scores_of(60, 6, 0)
    found = search(calibration, Resampling(), gallery_sizes=(size,), targets=(0.1,))
    assert found is not None
    (item,) = found.thresholds
    assert item.threshold.low is not None
    assert item.threshold.high is not None
    best = 0.1 * np.random.default_rng(9).standard_normal((3000, size)).max(1) + 0.4

    def observed(threshold: float) -> float:
        return float((best >= threshold).mean())

    assert 0.05 <= observed(item.threshold.value) <= 0.2
    assert observed(item.threshold.high) <= 0.1 <= observed(item.threshold.low)
    assert item.extrapolated == (comparison_rate(0.1, size) * 60 * 6 * 59 < 1)


def test_wolves_make_the_promise_err_to_the_safe_side() -> None:
    rng = np.random.default_rng(0)

    def draw(probes: int, subjects: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        wolf = 0.1 * rng.standard_normal((probes, 1))  # some probes resemble everybody
        return wolf + 0.1 * rng.standard_normal((probes, subjects)) + 0.4

    probe = np.repeat(np.arange(60), 6)
    calibration = SubjectScores(draw(360, 60).astype(np.float32), probe, probe, np.arange(60), 60)
    found = search(calibration, FEW, gallery_sizes=(1000,), targets=(0.1,))
    assert found is not None
    assert (draw(3000, 1000).max(1) >= found.thresholds[0].threshold.value).mean() < 0.1


def test_mates_below_a_threshold_are_counted() -> None:
    scores = scores_of(30, 4, 3)
    found = search(scores, FEW)
    assert found is not None
    mates = scores.similarities[scores.genuine]
    for item in found.thresholds:
        assert item.fnir.value == pytest.approx((mates < item.threshold.value).mean())


def test_a_single_comparison_of_two_people_is_searched_but_gives_no_thresholds() -> None:
    both = scores_of(2, 1, 0)
    one = SubjectScores(
        both.similarities[:1], both.own[:1], both.probe_subject[:1], both.enrolled_subject, 2
    )
    found = search(one, FEW)
    assert found is not None
    assert (found.mated, found.non_mated, found.thresholds) == (1, 1, ())


def test_without_mates_or_with_one_enrolled_there_is_no_search() -> None:
    nobody = scores_of(3, 2, 0)
    strangers = SubjectScores(
        nobody.similarities, np.full(6, -1), np.full(6, 3), nobody.enrolled_subject, 4
    )
    assert search(strangers, FEW) is None
    assert search(scores_of(1, 4, 0), FEW) is None

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation import EmbeddedSequences, LabelledSequences, Resampling
from training.evaluation.protocols import PROTOCOLS
from training.evaluation.scores import SubjectScores, subject_scores
from training.evaluation.verification import error_rates, verify

Walkers = tuple[LabelledSequences, EmbeddedSequences]

similarities = st.lists(st.integers(0, 8), min_size=1, max_size=12)


@settings(deadline=None, max_examples=80)
@given(genuine=similarities, impostor=similarities)
def test_error_rates_equal_counting_at_each_threshold(
    genuine: list[int], impostor: list[int]
) -> None:
    rates = error_rates(np.array(genuine, float), np.array(impostor, float))
    for threshold, fmr, fnmr in zip(rates.thresholds, rates.fmr, rates.fnmr, strict=True):
        assert fmr == sum(s >= threshold for s in impostor) / len(impostor)
        assert fnmr == sum(s < threshold for s in genuine) / len(genuine)
    assert rates.thresholds[:-1].tolist() == sorted(set(genuine + impostor))


@settings(deadline=None, max_examples=40)
@given(genuine=similarities, impostor=similarities, target=st.sampled_from([0.5, 0.25, 0.1]))
def test_the_threshold_for_a_false_match_rate_is_the_lowest_that_keeps_it(
    genuine: list[int], impostor: list[int], target: float
) -> None:
    rates = error_rates(np.array(genuine, float), np.array(impostor, float))
    threshold, fnmr = rates.at_fmr(target)
    candidates = [*sorted(set(genuine + impostor)), np.inf]
    lowest = next(t for t in candidates if sum(s >= t for s in impostor) / len(impostor) <= target)
    assert threshold == lowest
    assert fnmr == sum(s < lowest for s in genuine) / len(genuine)


def test_the_equal_error_rate_of_two_normal_distributions_is_as_computed_by_hand() -> None:
    rng = np.random.default_rng(0)
    rates = error_rates(rng.normal(2, 1, 40_000), rng.normal(0, 1, 40_000))
    assert rates.equal_error_rate() == pytest.approx(0.158655, abs=0.004)  # P(z < -1)


def test_separated_similarities_make_no_error() -> None:
    rates = error_rates(np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3]))
    assert rates.equal_error_rate() == 0
    assert rates.at_fmr(0.001) == (0.8, 0.0)


def test_rates_without_impostors_are_refused() -> None:
    with pytest.raises(ValueError, match="genuine and impostor"):
        error_rates(np.array([1.0]), np.array([]))


def test_a_subject_is_its_best_sequence() -> None:
    sequences = LabelledSequences.of(
        ["b", "a", "b", "a", "c"], ["1", "1", "1", "2", "2"], ["000"] * 5
    )
    place = np.array([[[4.0]], [[1.0]], [[0.0]], [[0.0]], [[9.0]]], np.float32)
    method = EmbeddedSequences("line", place, "euclidean")
    scores = subject_scores(sequences, PROTOCOLS["nine-pairs"].split(sequences), method)
    assert scores.enrolled_subject.tolist() == [0, 1]  # a and b; c is not enrolled
    np.testing.assert_allclose(scores.similarities, [[1 / 2, 1], [1 / 9, 1 / 6]])
    assert scores.own.tolist() == [0, -1]
    assert scores.probe_subject.tolist() == [0, 2]


def test_verification_counts_every_probe_against_every_enrolled_subject(walkers: Walkers) -> None:
    sequences, method = walkers
    scores = subject_scores(sequences, PROTOCOLS["nine-pairs"].split(sequences), method)
    found = verify(scores, Resampling(replicates=50))
    assert found is not None
    assert (found.genuine, found.impostor) == (54, 54 * 5)
    expected = error_rates(
        scores.similarities[scores.genuine].astype(float),
        scores.similarities[~scores.genuine].astype(float),
    )
    equal = found.equal_error_rate
    assert equal.value == expected.equal_error_rate()
    assert equal.low is not None
    assert equal.high is not None
    assert equal.low <= equal.value <= equal.high
    tenth, hundredth, thousandth = found.points
    assert tenth.fnmr is not None
    assert (tenth.threshold, tenth.fnmr.value) == expected.at_fmr(0.1)
    assert hundredth.fnmr is not None
    assert thousandth.fnmr is None  # 270 comparisons cannot show one in a thousand


def test_curves_are_thinned_but_keep_their_ends_and_their_order(walkers: Walkers) -> None:
    sequences, method = walkers
    scores = subject_scores(sequences, PROTOCOLS["nine-pairs"].split(sequences), method)
    found = verify(scores, Resampling(replicates=1))
    assert found is not None
    thresholds, fmr, fnmr = zip(*found.curve, strict=True)
    assert len(found.curve) <= 140
    assert list(thresholds) == sorted(thresholds)
    assert list(fmr) == sorted(fmr, reverse=True)
    assert (fmr[0], fnmr[0]) == (1, 0)
    assert thresholds[-1] == pytest.approx(scores.similarities.max())


def test_too_many_impostors_are_drawn_and_estimate_the_same_rate() -> None:
    rng = np.random.default_rng(0)
    scores = SubjectScores(
        rng.normal(0, 1, (400, 20)).astype(np.float32),
        np.arange(400) % 20,
        np.arange(400) % 20,
        np.arange(20),
        20,
    )
    found = verify(scores, Resampling(replicates=1), most_impostors=3000)
    assert found is not None
    assert (found.genuine, found.impostor) == (400, 3000)
    assert found.equal_error_rate.value == pytest.approx(0.5, abs=0.05)


def test_intervals_hold_the_truth_about_as_often_as_they_promise() -> None:
    held = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        subjects = 30
        own = np.repeat(np.arange(subjects), 4)
        scores = rng.normal(0, 1, (len(own), subjects))
        scores[np.arange(len(own)), own] += 2
        found = verify(
            SubjectScores(scores.astype(np.float32), own, own, np.arange(subjects), subjects),
            Resampling(seed=seed, replicates=60, confidence=0.9),
        )
        assert found is not None
        assert found.equal_error_rate.low is not None
        assert found.equal_error_rate.high is not None
        held += found.equal_error_rate.low <= 0.158655 <= found.equal_error_rate.high
    assert held >= 30  # 36 expected


def test_without_impostors_there_is_nothing_to_verify() -> None:
    only = SubjectScores(
        np.ones((3, 1), np.float32), np.zeros(3, int), np.zeros(3, int), np.zeros(1, int), 1
    )
    assert verify(only, Resampling()) is None

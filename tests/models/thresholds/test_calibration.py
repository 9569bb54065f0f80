import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.card import CardThreshold, Metric
from models.comparison.similarity import similarity
from models.thresholds.calibration import (
    CURVE,
    CannotCalibrate,
    background_threshold,
    calibrate,
    calibration_curve,
    stranger_similarities,
)

CARD = (
    CardThreshold(target_fpir=0.1, gallery_subjects=100, threshold=0.5),
    CardThreshold(target_fpir=0.01, gallery_subjects=100, threshold=0.6),
    CardThreshold(target_fpir=0.001, gallery_subjects=100, threshold=0.7),
    CardThreshold(target_fpir=0.01, gallery_subjects=10_000, threshold=0.8),
)
WALKS = 5


def people(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Walks of different people [count * WALKS, 2 parts, 12 channels]."""
    centres = np.repeat(rng.standard_normal((count, 2, 12)), WALKS, axis=0)
    return (centres + 0.7 * rng.standard_normal(centres.shape)).astype(np.float32)


def whose(count: int) -> NDArray[np.int64]:
    return np.repeat(np.arange(count), WALKS)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), metric=st.sampled_from(["cosine", "euclidean"]))
def test_a_stranger_meets_the_best_of_all_sequences_of_others(seed: int, metric: Metric) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((13, 3, 5)).astype(np.float32)
    subjects = rng.integers(0, 4, 13)
    found = stranger_similarities(embeddings, subjects, metric)
    for index, value in enumerate(found):
        others = embeddings[subjects != subjects[index]]
        best = similarity(embeddings[index], others, metric).max() if len(others) else -np.inf
        assert value == pytest.approx(best, rel=1e-5, abs=1e-6)


def test_progress_is_told_after_every_block() -> None:
    embeddings = np.ones((600, 2, 4), np.float32)
    done: list[int] = []
    stranger_similarities(embeddings, np.arange(600), "cosine", done.append)
    assert done == [512, 600]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="subjects"):
        stranger_similarities(np.zeros((3, 2, 2), np.float32), np.arange(2), "cosine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "target", "method"),
    [(120, 0.1, "observed"), (120, 0.02, "extrapolated"), (40, 0.1, "extrapolated")],
)
def test_the_promise_holds_on_strangers_never_seen_within_its_interval(
    count: int, target: float, method: str
) -> None:
    kept, rates = 0, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gallery, strangers = people(rng, count), people(rng, 800)[::WALKS]
        found = calibrate(
            stranger_similarities(gallery, whose(count), "euclidean"), whose(count), target
        )
        # A stranger who stands last, so that everybody enrolled is somebody else.
        both = np.concatenate([gallery, strangers])
        apart = np.concatenate([np.zeros(len(gallery)), np.ones(len(strangers))]).astype(np.int64)
        met = stranger_similarities(both, apart, "euclidean")[len(gallery) :]
        assert found.method == method
        assert found.interval is not None
        low, high = found.interval
        kept += bool((met >= high).mean() <= target <= (met >= low).mean())
        rates.append((met >= found.threshold).mean())
    assert kept >= 18
    assert target / 2 < np.mean(rates) < target * 1.25


def test_observed_rates_are_never_above_the_promised_one_in_the_gallery_itself() -> None:
    rng = np.random.default_rng(0)
    values, subjects = rng.random(500), np.repeat(np.arange(100), 5)
    found = calibrate(values, subjects, 0.2)
    assert found.method == "observed"
    assert 0.19 <= (values >= found.threshold).mean() <= 0.2
    assert found.interval is not None
    assert found.interval[0] < found.threshold < found.interval[1]


def test_a_subject_with_many_sequences_counts_as_one_person() -> None:
    values = np.r_[np.full(1000, 0.9), np.random.default_rng(0).random(200) / 2]
    subjects = np.r_[np.zeros(1000, np.int64), np.arange(1, 201)]
    assert calibrate(values, subjects, 0.1).threshold < 0.5


def test_the_same_seed_gives_the_same_interval() -> None:
    values, subjects = np.random.default_rng(0).random(60), np.arange(60)
    first = calibrate(values, subjects, 0.05, seed=3)
    assert calibrate(values, subjects, 0.05, seed=3) == first
    assert calibrate(values, subjects, 0.05, seed=4) != first


def test_thresholds_rise_as_the_rate_falls() -> None:
    values, subjects = np.random.default_rng(0).random(400) / 2, np.arange(400)
    found = [calibrate(values, subjects, target) for target in (0.2, 0.05, 0.01, 0.001)]
    thresholds = [item.threshold for item in found]
    assert thresholds == sorted(thresholds)
    assert [item.method for item in found] == ["observed"] * 2 + ["extrapolated"] * 2
    assert max(thresholds) <= 1


def test_similarities_that_are_all_equal_match_nobody() -> None:
    for target in (0.01, 0.3):
        found = calibrate(np.full(60, 0.25), np.arange(60), target)
        assert found.threshold > 0.25
        assert found.threshold == pytest.approx(0.25)


@pytest.mark.parametrize("count", [1, 2, 19])
def test_a_small_gallery_takes_the_cards_threshold_for_its_size(count: int) -> None:
    found = calibrate(np.full(count, -np.inf if count == 1 else 0.1), np.arange(count), 0.01, CARD)
    known = background_threshold(CARD, 0.01, count)
    assert (found.method, found.threshold) == ("background", known)
    if count < 3:
        assert found.interval is None
    else:
        assert found.interval == pytest.approx((0.1, known))


def test_a_small_gallery_of_people_alike_gets_more_than_the_cards_threshold() -> None:
    found = calibrate(np.array([0.9, 0.9, 0.91]), np.arange(3), 0.01, CARD)
    assert found.method == "background"
    assert found.threshold > 0.9


def test_a_rate_far_beyond_a_galleries_searches_takes_the_cards() -> None:
    values = np.random.default_rng(0).random(50) / 4
    assert calibrate(values, np.arange(50), 0.001, CARD).method == "background"


def test_a_small_gallery_without_the_cards_help_says_how_many_it_takes() -> None:
    with pytest.raises(CannotCalibrate, match="enrol 20 subjects"):
        calibrate(np.array([0.1, 0.1]), np.arange(2), 0.01)
    with pytest.raises(CannotCalibrate, match="enrol 200 subjects"):
        calibrate(np.random.default_rng(0).random(30), np.arange(30), 0.001)


def test_an_empty_gallery_has_no_threshold() -> None:
    with pytest.raises(CannotCalibrate, match="nobody is enrolled"):
        calibrate(np.zeros(0), np.zeros(0, np.int64), 0.01, CARD)


def test_a_small_gallery_that_no_similarity_can_serve_is_refused() -> None:
    with pytest.raises(CannotCalibrate, match="no similarity promises it; enrol 20 subjects"):
        calibrate(np.array([0.2, 0.2, 0.7, 0.9, 0.9]), np.arange(5), 0.001, CARD)


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0, float("nan")])
def test_what_is_no_rate_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        calibrate(np.array([0.1, 0.1]), np.arange(2), target, CARD)


@pytest.mark.parametrize(
    ("target", "size", "expected"),
    [
        (0.01, 100, 0.6),
        (0.1, 1000, 0.6),  # nearly the same rate of a comparison
        (0.01, 10_000, 0.8),
        (0.3, 10, 0.5),  # a higher rate than the card's highest: its threshold, which is safe
        (0.001, 10_000, None),  # lower than its lowest
    ],
)
def test_the_cards_thresholds_hold_for_other_sizes(
    target: float, size: int, expected: float | None
) -> None:
    found = background_threshold(CARD, target, size)
    assert found == (None if expected is None else pytest.approx(expected, abs=0.003))
    assert background_threshold((), target, size) is None


def test_a_curve_has_what_each_of_its_rates_would_be_calibrated_to() -> None:
    values, subjects = np.random.default_rng(0).random(400) / 2, np.arange(400)
    curve = calibration_curve(values, subjects)
    assert list(curve) == list(CURVE)
    for target, found in curve.items():
        assert found == calibrate(values, subjects, target)
        assert found.interval is not None
        assert found.interval[0] < found.threshold < found.interval[1]
    assert {found.method for found in curve.values()} == {"observed", "extrapolated"}


def test_a_curve_ends_where_the_gallery_and_the_card_can_show_no_more() -> None:
    values, subjects = np.random.default_rng(0).random(50) / 2, np.arange(50)
    assert list(calibration_curve(values, subjects)) == [0.3, 0.1, 0.03, 0.01]
    with_card = calibration_curve(values, subjects, CARD)
    assert list(with_card) == list(CURVE)
    assert with_card[0.001].method == "background"
    assert calibration_curve(np.empty(0), np.empty(0, np.int64), CARD) == {}

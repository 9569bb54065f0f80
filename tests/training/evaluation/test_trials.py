from collections.abc import Callable

import numpy as np
import pytest

from training.evaluation.bootstrap import (
    Estimate,
    Resampling,
    percentile_estimate,
    subject_weights,
    wilson_estimate,
)
from training.evaluation.trials import Cell, Figure, Trials, TrialsBuilder

Make = Callable[[int], Trials]


@pytest.fixture
def make() -> Make:
    """Trials of five subjects in two cells; the first subject is better than the others."""

    def build(seed: int) -> Trials:
        rng = np.random.default_rng(seed)
        subjects = np.array([f"s{i}" for i in range(5) for _ in range(4)])
        builder = TrialsBuilder(subjects, ("hit", "precision"))
        for name in ("a", "b"):
            probes = np.flatnonzero(rng.random(20) < 0.8)
            hits = (rng.random(len(probes)) < np.where(probes < 4, 0.9, 0.4)).astype(float)
            precision = np.where(rng.random(len(probes)) < 0.2, np.nan, rng.random(len(probes)))
            builder.add(Cell(name), probes, [hits, precision])
        return builder.build()

    return build


@pytest.mark.parametrize("measure", ["hit", "precision"])
def test_replicates_equal_evaluating_the_drawn_subjects_one_by_one(
    make: Make, measure: str
) -> None:
    trials = make(0)
    figure = Figure("mean", measure, (0, 1))
    weights = subject_weights(5, Resampling(replicates=20))
    column = trials.outcomes[:, trials.measures.index(measure)]
    for drawn, found in zip(weights, trials.replicates(figure, weights), strict=True):
        cells = []
        for cell in (0, 1):
            outcomes = [
                value
                for value, where, subject in zip(column, trials.cell, trials.subject, strict=True)
                for _ in range(int(drawn[subject]))
                if where == cell and not np.isnan(value)
            ]
            if outcomes:
                cells.append(np.mean(outcomes))
        np.testing.assert_allclose(found, np.mean(cells))


def test_a_figure_is_the_mean_of_cell_means_not_of_trials() -> None:
    builder = TrialsBuilder(np.array(["a", "b", "c", "d"]), ("hit",))
    builder.add(Cell("small"), np.array([0]), [np.array([1.0])])
    builder.add(Cell("large"), np.array([1, 2, 3]), [np.array([0.0, 0.0, 1.0])])
    trials = builder.build()
    assert trials.value(Figure("x", "hit", (0, 1))) == pytest.approx((1 + 1 / 3) / 2)
    rounded = trials.value(Figure("x", "hit", (1,), decimals=2))
    assert rounded == pytest.approx(0.3333, abs=1e-12)


def test_a_figure_without_trials_is_unknown(make: Make) -> None:
    estimate = make(0).estimate(Figure("nothing", "hit", ()), Resampling())
    assert np.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (None, None)


def test_intervals_are_the_same_for_the_same_seed_and_hold_the_value(make: Make) -> None:
    trials, figure = make(0), Figure("mean", "hit", (0, 1))
    one = trials.estimate(figure, Resampling(seed=1))
    assert one == trials.estimate(figure, Resampling(seed=1))
    assert one != trials.estimate(figure, Resampling(seed=2))
    assert one.low is not None
    assert one.high is not None
    assert one.low <= one.value <= one.high


def test_one_yes_or_no_a_subject_gets_wilsons_interval() -> None:
    builder = TrialsBuilder(np.array(["a", "b", "c"]), ("hit",))
    builder.add(Cell(), np.arange(3), [np.array([1.0, 1.0, 1.0])])
    estimate = builder.build().estimate(Figure("x", "hit", (0,)), Resampling())
    assert estimate == wilson_estimate(3, 3, 0.95)
    assert estimate.low is not None
    assert estimate.low < 0.5  # three right answers prove little


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_a_figure_without_exception_is_as_uncertain_as_its_few_subjects(outcome: float) -> None:
    builder = TrialsBuilder(np.array([f"s{i // 5}" for i in range(20)]), ("hit",))
    builder.add(Cell(), np.arange(20), [np.full(20, outcome)])
    estimate = builder.build().estimate(Figure("x", "hit", (0,)), Resampling())
    assert estimate == wilson_estimate(4 * outcome, 4, 0.95)


def test_one_subject_alone_gives_no_interval() -> None:
    builder = TrialsBuilder(np.array(["a", "a"]), ("hit",))
    builder.add(Cell(), np.arange(2), [np.array([1.0, 0.0])])
    estimate = builder.build().estimate(Figure("x", "hit", (0,)), Resampling())
    assert estimate == Estimate(0.5)


def test_a_method_does_not_differ_from_itself(make: Make) -> None:
    trials = make(0)
    same = trials.difference(make(0), Figure("mean", "hit", (0, 1)), Resampling())
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_pairing_narrows_the_interval_of_a_difference(make: Make) -> None:
    first = make(0)
    figure = Figure("mean", "hit", (0, 1))
    outcomes = first.outcomes.copy()
    outcomes[0, 0] = 1 - outcomes[0, 0]  # one answer differs
    second = Trials(
        first.cells, first.measures, first.subjects, first.cell, first.subject, outcomes
    )
    paired = first.difference(second, figure, Resampling())
    alone = first.estimate(figure, Resampling())
    assert paired.low is not None
    assert paired.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_methods_tried_on_other_subjects_are_not_compared(make: Make) -> None:
    builder = TrialsBuilder(np.array(["z"]), ("hit",))
    builder.add(Cell("a"), np.array([0]), [np.array([1.0])])
    with pytest.raises(ValueError, match="not tried on the same sequences"):
        make(0).difference(builder.build(), Figure("x", "hit", (0,)), Resampling())


def test_a_protocol_in_which_nobody_is_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was compared"):
        TrialsBuilder(np.array(["a"]), ("hit",)).build()


def test_every_replicate_draws_as_many_subjects_as_there_are() -> None:
    weights = subject_weights(7, Resampling(replicates=50))
    assert weights.shape == (50, 7)
    assert (weights.sum(1) == 7).all()


def test_wilsons_interval_equals_the_published_example() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20.
    found = wilson_estimate(81, 263, 0.95)
    assert found.low == pytest.approx(0.2553, abs=5e-5)
    assert found.high == pytest.approx(0.3662, abs=5e-5)
    none = wilson_estimate(0, 20, 0.95)
    assert none.low == pytest.approx(0, abs=1e-12)
    assert none.high == pytest.approx(0.1611, abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes of"):
        wilson_estimate(successes, trials, 0.95)


def test_replicates_that_say_nothing_are_left_out() -> None:
    found = percentile_estimate(0.5, np.array([np.nan, 0.5, 0.5]), 0.95)
    assert (found.low, found.high) == (0.5, 0.5)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="replicates"):
        Resampling(replicates=0)
    with pytest.raises(ValueError, match="confidence"):
        Resampling(confidence=1.0)

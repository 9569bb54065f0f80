import math

import numpy as np
import pytest

from models.thresholds.impostors import ImpostorTail, comparison_rate


@pytest.mark.parametrize(("target", "size"), [(0.1, 100), (0.001, 10_000), (0.5, 1)])
def test_the_rate_of_one_comparison_makes_the_rate_of_a_search(target: float, size: int) -> None:
    rate = comparison_rate(target, size)
    assert 1 - (1 - rate) ** size == pytest.approx(target, rel=1e-6)


@pytest.mark.parametrize(("target", "size"), [(0, 10), (1, 10), (0.1, 0)])
def test_rates_and_sizes_out_of_range_are_refused(target: float, size: int) -> None:
    with pytest.raises(ValueError, match="enrolled"):
        comparison_rate(target, size)


def test_the_tail_of_an_exponential_distribution_is_extrapolated() -> None:
    drawn = np.random.default_rng(0).exponential(0.02, 200_000)
    rates = [1e-3, 1e-5, 1e-7]
    found = ImpostorTail(drawn).thresholds(rates)
    exact = [-0.02 * math.log(rate) for rate in rates]
    np.testing.assert_allclose(found, exact, rtol=0.12)


def test_the_tail_of_a_bounded_distribution_ends_where_it_ends() -> None:
    drawn = np.random.default_rng(0).uniform(0, 0.5, 100_000)
    found = ImpostorTail(drawn).thresholds([1e-4, 1e-8])
    np.testing.assert_allclose(found, [0.49995, 0.5], atol=1e-3)


def test_thresholds_rise_as_rates_fall_and_never_pass_one() -> None:
    heavy = np.random.default_rng(0).pareto(1.5, 5000) * 0.05
    found = ImpostorTail(heavy).thresholds([1e-2, 1e-4, 1e-6, 1e-9])
    assert found == sorted(found)
    assert found[-1] == 1.0


def test_equal_similarities_have_a_tail_without_width() -> None:
    assert ImpostorTail(np.full(400, 0.25)).thresholds([1e-3, 1e-6]) == [0.25, 0.25]


def test_rates_outside_the_tail_are_refused() -> None:
    with pytest.raises(ValueError, match="in the tail"):
        ImpostorTail(np.random.default_rng(0).random(10_000)).thresholds([0.1])


def test_one_comparison_has_no_tail() -> None:
    with pytest.raises(ValueError, match="no tail"):
        ImpostorTail(np.array([0.3]))


def test_counting_a_comparison_twice_is_the_same_as_having_it_twice() -> None:
    similarities = np.sort(np.random.default_rng(0).random(2000))
    tail = ImpostorTail(similarities)
    counts = np.full(len(tail.members), 2.0)
    assert tail.thresholds([1e-4], counts, 4000.0) == pytest.approx(tail.thresholds([1e-4]))

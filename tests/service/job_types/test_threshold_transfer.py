from __future__ import annotations

import numpy as np
import pytest

from service.job_types.threshold_transfer import transferred_threshold


def test_a_threshold_goes_to_where_it_stood_above_the_strangers() -> None:
    before = np.array([0.2, 0.3, 0.4])
    after = np.array([0.6, 0.65, 0.7])  # half as wide, about 0.65
    assert transferred_threshold(0.5, before, after) == pytest.approx(0.75)
    assert transferred_threshold(0.3, before, after) == pytest.approx(0.65)


def test_it_never_asks_for_more_than_the_same_walk_has() -> None:
    assert transferred_threshold(0.9, np.array([0.1, 0.2]), np.array([0.5, 0.9])) == 1.0


def test_strangers_who_are_all_alike_have_no_width_to_carry_over() -> None:
    assert transferred_threshold(0.6, np.array([0.5, 0.5]), np.array([0.2, 0.4])) == pytest.approx(
        0.4
    )

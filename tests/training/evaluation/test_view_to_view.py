"""`benchmarks.views`: rank-1 among ten people from one view to another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.views import measure
from benchmarks.walks import Walks

PEOPLE = 12


def known_by(groups: int, *, across: bool) -> tuple[Walks, list[NDArray[np.intp]]]:
    """Two walks of everybody in each group, alike within it, and `across` groups too or not."""
    group, subjects, _ = (
        array.ravel()
        for array in np.meshgrid(range(groups), range(PEOPLE), range(2), indexing="ij")
    )
    same_person = subjects[:, None] == subjects
    same_group = group[:, None] == group
    walks = object.__new__(Walks)
    walks.people, walks.subjects = PEOPLE, subjects
    walks.similarities = (same_person & (same_group | across)).astype(np.float64)
    return walks, [np.flatnonzero(group == number) for number in range(groups)]


def test_what_is_alike_only_within_a_view_is_found_only_there() -> None:
    found = measure(*known_by(3, across=False), draws=2)
    assert len(found) == 9
    assert found["along → along"] == [100.0, 100.0, 100.0]
    assert found["side → along"] == [0.0, 0.0, 0.0]  # a tie is no hit


def test_what_is_alike_across_views_is_found_everywhere() -> None:
    found = measure(*known_by(3, across=True), draws=2)
    assert set(map(tuple, found.values())) == {(100.0, 100.0, 100.0)}

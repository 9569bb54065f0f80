"""Two checkpoints on the same searches."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.paired import LEAST_SUBJECTS, Side, compare_rank1, nearest_others
from models.comparison.similarity import similarity


def people(count: int, *, noise: float, seed: int = 0) -> NDArray[np.float32]:
    """[2 * count, 4 parts, 8 channels]: two walks each, side by side."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((count, 4, 8)), 2, axis=0)
    return (centres + noise * rng.standard_normal(centres.shape)).astype(np.float32)


def whose(count: int) -> NDArray[np.int64]:
    return np.repeat(np.arange(count), 2)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_nearest_other_is_the_one_that_a_search_would_find(metric: Metric) -> None:
    embeddings = people(150, noise=2.0)  # more than one block
    for row, found in enumerate(nearest_others(Side(embeddings, metric))):
        similarities = similarity(embeddings[row], embeddings, metric)
        similarities[row] = -np.inf
        assert found != row
        assert similarities[found] == pytest.approx(similarities.max(), abs=1e-6)


def test_a_model_that_tells_people_apart_is_shown_to_be_better_than_one_that_does_not() -> None:
    good, bad = Side(people(40, noise=0.1), "cosine"), Side(people(40, noise=9.0), "euclidean")
    found = compare_rank1(good, bad, whose(40))
    assert found is not None
    assert (found.subjects, found.searches, found.rank1_new) == (40, 80, 1.0)
    assert found.difference == pytest.approx(found.rank1_new - found.rank1_old)
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.agreement == pytest.approx(found.rank1_old)
    assert found.shows_better
    back = compare_rank1(bad, good, whose(40))
    assert back is not None
    assert not back.shows_better


def test_the_same_model_is_not_shown_to_be_better_than_itself() -> None:
    side = Side(people(40, noise=1.0), "cosine")
    found = compare_rank1(side, side, whose(40))
    assert found is not None
    assert (found.difference, found.interval, found.agreement) == (0.0, (0.0, 0.0), 1.0)
    assert not found.shows_better


def test_chance_is_seldom_taken_for_better() -> None:
    shown = 0
    for seed in range(60):
        new, old = (
            Side(people(30, noise=1.6, seed=7000 + 2 * seed + side), "cosine") for side in (0, 1)
        )
        found = compare_rank1(new, old, whose(30))
        assert found is not None
        shown += found.shows_better
    assert shown <= 6  # 2.5 % are expected


def test_a_handful_of_people_shows_nothing() -> None:
    count = LEAST_SUBJECTS - 1
    good, bad = Side(people(count, noise=0.1), "cosine"), Side(people(count, noise=9.0), "cosine")
    found = compare_rank1(good, bad, whose(count))
    assert found is not None
    assert found.interval[0] > 0
    assert not found.shows_better


def test_people_with_one_walk_are_in_the_gallery_and_are_not_asked_about() -> None:
    side = Side(people(4, noise=0.1)[[0, 1, 2, 4]], "cosine")
    found = compare_rank1(side, side, np.array([0, 0, 1, 2]))
    assert found is not None
    assert (found.subjects, found.searches) == (1, 2)
    assert compare_rank1(side, side, np.arange(4)) is None


def test_sequences_that_do_not_pair_are_refused() -> None:
    side = Side(people(4, noise=0.1), "cosine")
    with pytest.raises(ValueError, match="same sequences"):
        compare_rank1(side, Side(side.embeddings[:-1], "cosine"), whose(4))

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.card import Metric
from models.comparison.nearest import NOBODY, nearest, nearest_by_all
from models.comparison.similarity import similarity


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    metric=st.sampled_from(["cosine", "euclidean"]),
    block=st.sampled_from([1, 3, 5, 512]),
)
def test_everybody_s_nearest_is_what_a_plain_loop_finds(
    seed: int, metric: Metric, block: int
) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((14, 3, 5)).astype(np.float32)
    subjects = rng.integers(0, 5, 14)
    own, others = nearest(embeddings, subjects, metric, block=block)
    for row in range(14):
        for found, among in (
            (own, np.flatnonzero((subjects == subjects[row]) & (np.arange(14) != row))),
            (others, np.flatnonzero(subjects != subjects[row])),
        ):
            if len(among) == 0:
                assert found.index[row] == NOBODY
                assert found.similarity[row] == -np.inf
                continue
            alike = similarity(embeddings[row], embeddings[among], metric)
            assert found.index[row] == among[alike.argmax()]
            assert found.similarity[row] == pytest.approx(alike.max(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("block", [2, 3, 512])
def test_of_equals_the_first_is_the_nearest(block: int) -> None:
    embeddings = np.zeros((7, 4, 3), np.float32)
    embeddings[..., 0] = 1  # similarities without rounding
    own, others = nearest(embeddings, np.array([0, 1, 0, 1, 0, 1, 2]), "cosine", block=block)
    assert own.index.tolist() == [2, 3, 0, 1, 0, 1, NOBODY]
    assert others.index.tolist() == [1, 0, 1, 0, 1, 0, 0]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="subjects"):
        nearest(np.zeros((3, 2, 2), np.float32), np.arange(2), "cosine")


def test_by_all_a_subject_is_scored_half_way_from_the_mean_of_its_walks_to_the_best() -> None:
    rng = np.random.default_rng(3)
    subjects = np.array([0, 1, 1, 2, 0, 2, 2, 3], np.int64)
    vectors = rng.standard_normal((8, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    told: list[int] = []
    own, others = nearest_by_all(vectors, subjects, told.append, block=3)
    assert told == [3, 6, 8]
    alike = vectors @ vectors.T
    for row in range(8):
        scores: dict[int, tuple[float, int]] = {}
        for subject in range(4):
            rows = [other for other in np.flatnonzero(subjects == subject) if other != row]
            if rows:
                near = alike[row, rows]
                score = (near.max() + near.mean()) / 2
                scores[subject] = (float(score), int(rows[near.argmax()]))
        mine = scores.pop(int(subjects[row]), (-np.inf, NOBODY))
        best = max(scores.values())
        assert (own.similarity[row], own.index[row]) == (pytest.approx(mine[0]), mine[1])
        assert (others.similarity[row], others.index[row]) == (pytest.approx(best[0]), best[1])


def test_by_all_a_single_subject_is_near_to_nobody_else() -> None:
    vectors = np.eye(3, dtype=np.float32)
    own, others = nearest_by_all(vectors, np.zeros(3, np.int64))
    assert own.similarity.tolist() == [0, 0, 0]
    assert others.index.tolist() == [NOBODY] * 3
    with pytest.raises(ValueError, match="subjects"):
        nearest_by_all(vectors, np.zeros(2, np.int64))

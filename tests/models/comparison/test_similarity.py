from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.similarity import index_vectors, part_similarity, similarity

METRICS: tuple[Metric, ...] = ("cosine", "euclidean")
values = st.floats(-100, 100, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
embeddings = arrays(np.float32, (4, 3, 5), elements=values)


def part_by_hand(a: NDArray[np.float32], b: NDArray[np.float32], metric: Metric) -> float:
    if metric == "euclidean":
        return 1 / (1 + math.dist(a.tolist(), b.tolist()))
    lengths = math.hypot(*a.tolist()) * math.hypot(*b.tolist())
    return (
        sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)) / lengths if lengths else 0
    )


def whole_by_hand(a: NDArray[np.float32], b: NDArray[np.float32], metric: Metric) -> float:
    if metric == "euclidean":
        distances = [math.dist(x.tolist(), y.tolist()) for x, y in zip(a, b, strict=True)]
        return 1 / (1 + sum(distances) / len(distances))
    return sum(part_by_hand(x, y, metric) for x, y in zip(a, b, strict=True)) / len(a)


@pytest.mark.parametrize("metric", METRICS)
@given(all_walks=embeddings)
def test_similarities_equal_a_loop_over_entries_and_parts(
    metric: Metric, all_walks: NDArray[np.float32]
) -> None:
    probe, gallery = all_walks[0], all_walks
    whole = similarity(probe, gallery, metric)
    parts = part_similarity(probe, gallery, metric)
    assert whole.dtype == parts.dtype == np.float32
    assert (whole.shape, parts.shape) == ((4,), (4, 3))
    for entry, walk in enumerate(gallery):
        assert whole[entry] == pytest.approx(whole_by_hand(probe, walk, metric), abs=2e-6)
        for part in range(3):
            wanted = part_by_hand(probe[part], walk[part], metric)
            assert parts[entry, part] == pytest.approx(wanted, abs=2e-6)


@given(all_walks=embeddings)
def test_the_inner_product_of_index_vectors_is_the_cosine_similarity(
    all_walks: NDArray[np.float32],
) -> None:
    vectors = index_vectors(all_walks)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 15)
    assert vectors.flags.c_contiguous
    products = vectors @ vectors[1]
    np.testing.assert_allclose(products, similarity(all_walks[1], all_walks, "cosine"), atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_walk_is_most_like_itself(metric: Metric) -> None:
    walks = np.random.default_rng(0).standard_normal((5, 16, 8)).astype(np.float32)
    for position, walk in enumerate(walks):
        found = similarity(walk, walks, metric)
        assert found.argmax() == position
        assert found[position] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_parts_of_no_length_give_no_nan_and_no_warning(metric: Metric) -> None:
    walks = np.zeros((2, 3, 4), np.float32)
    walks[1, 0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [
            similarity(walks[0], walks, metric),
            part_similarity(walks[1], walks, metric),
            index_vectors(walks),
        ]
    assert all(np.isfinite(array).all() for array in found)
    if metric == "cosine":
        assert found[1].tolist() == [[0, 0, 0], [pytest.approx(1), 0, 0]]


def test_vectors_of_whole_walks_have_length_one() -> None:
    walks = np.random.default_rng(0).standard_normal((5, 16, 8)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(index_vectors(walks), axis=1), 1, rtol=1e-6)


def test_an_empty_gallery_has_no_similarities() -> None:
    probe, nobody = np.ones((3, 4), np.float32), np.empty((0, 3, 4), np.float32)
    for metric in METRICS:
        assert similarity(probe, nobody, metric).shape == (0,)
        assert part_similarity(probe, nobody, metric).shape == (0, 3)
    assert index_vectors(nobody).shape == (0, 12)


@pytest.mark.parametrize(
    ("probe", "gallery"),
    [((3, 4), (2, 4, 3)), ((3,), (2, 3)), ((3, 4), (3, 4)), ((0, 4), (2, 0, 4))],
)
def test_shapes_that_do_not_fit_are_refused(
    probe: tuple[int, ...], gallery: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="are needed"):
        similarity(np.ones(probe, np.float32), np.ones(gallery, np.float32), "cosine")


def test_unknown_metrics_and_flat_vectors_are_refused() -> None:
    walks = np.ones((2, 3, 4), np.float32)
    with pytest.raises(ValueError, match="unknown metric 'manhattan'"):
        similarity(walks[0], walks, "manhattan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be"):
        index_vectors(walks[0])

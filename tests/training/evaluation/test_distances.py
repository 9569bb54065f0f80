from typing import Any

import numpy as np
import pytest

from models.card import Metric
from models.comparison.similarity import similarity
from training.evaluation.distances import pairwise_distances, to_similarity


def random_embeddings(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((n, 4, 6)).astype(np.float32)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_equal_a_loop_over_pairs_and_parts(metric: Metric) -> None:
    probes, gallery = random_embeddings(5, 0), random_embeddings(7, 1)
    expected = np.empty((5, 7))
    for i, probe in enumerate(probes.astype(np.float64)):
        for j, other in enumerate(gallery.astype(np.float64)):
            parts = []
            for a, b in zip(probe, other, strict=True):
                if metric == "euclidean":
                    parts.append(np.sqrt(((a - b) ** 2).sum()))
                else:
                    parts.append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            expected[i, j] = np.mean(parts)
    np.testing.assert_allclose(pairwise_distances(probes, gallery, metric), expected, rtol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_do_not_depend_on_how_the_work_is_cut(metric: Metric) -> None:
    probes, gallery = random_embeddings(11, 0), random_embeddings(23, 1)
    whole = pairwise_distances(probes, gallery, metric)
    cut = pairwise_distances(probes, gallery, metric, probes_at_once=4, gallery_at_once=5)
    np.testing.assert_allclose(cut, whole, atol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_sequence_is_at_no_distance_from_itself(metric: Metric) -> None:
    embeddings = 100 * random_embeddings(6, 0)
    own = np.diag(pairwise_distances(embeddings, embeddings, metric))
    np.testing.assert_allclose(own, 0, atol=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_similarities_are_those_that_the_service_shows(metric: Metric) -> None:
    probes, gallery = random_embeddings(3, 0), random_embeddings(9, 1)
    ours = to_similarity(pairwise_distances(probes, gallery, metric), metric)
    for row, probe in zip(ours, probes, strict=True):
        np.testing.assert_allclose(row, similarity(probe, gallery, metric), atol=1e-6)


def test_a_part_of_length_zero_has_cosine_zero_with_everything() -> None:
    zero = np.zeros((1, 1, 3), np.float32)
    other = np.ones((1, 1, 3), np.float32)
    assert pairwise_distances(zero, other, "cosine").item() == 1.0


def test_embeddings_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected embeddings"):
        pairwise_distances(random_embeddings(2, 0), random_embeddings(2, 0)[:, :3], "cosine")


def test_numbers_that_are_not_finite_are_refused() -> None:
    broken = random_embeddings(2, 0)
    broken[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        pairwise_distances(random_embeddings(2, 0), broken, "euclidean")


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="metric must be"):
        pairwise_distances(random_embeddings(1, 0), random_embeddings(1, 0), "manhattan")  # type: ignore[arg-type]


@pytest.mark.parametrize(("metric", "name"), [("euclidean", "euc"), ("cosine", "cos")])
def test_distances_equal_the_reference(metric: Metric, name: str, golden: Any) -> None:
    ours = pairwise_distances(golden.embeddings("dist/x"), golden.embeddings("dist/y"), metric)
    np.testing.assert_allclose(ours, golden.arrays[f"dist/{name}"], rtol=1e-6, atol=1e-6)


def test_distances_to_oneself_equal_the_reference_but_for_its_rounding(golden: Any) -> None:
    own = golden.embeddings("dist/x")
    ours = pairwise_distances(own, own, "euclidean")
    np.testing.assert_allclose(np.diag(ours), 0, atol=1e-6)
    others = ~np.eye(len(own), dtype=bool)
    np.testing.assert_allclose(
        ours[others], golden.arrays["dist/self_euc"][others], rtol=1e-6, atol=1e-6
    )

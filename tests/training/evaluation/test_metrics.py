from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.metrics import Ranking, rank


def naive(
    distances: list[float], mates: list[bool], excluded: list[bool]
) -> tuple[int, float, float]:
    """First mate's rank, average precision, inverse penalty of one probe, step by step."""
    kept = [(d, i) for i, d in enumerate(distances) if not excluded[i]]
    kept.sort()
    seen, precisions, first, last = 0, [], 0, 0
    for place, (_, i) in enumerate(kept, start=1):
        if mates[i]:
            seen += 1
            precisions.append(seen / place)
            first, last = first or place, place
    if not seen:
        return 0, float("nan"), float("nan")
    return first, sum(precisions) / seen, seen / last


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 6), m=st.integers(1, 15), seed=st.integers(0, 10_000))
def test_rankings_equal_a_loop_with_ties_and_exclusions(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 6, (n, m)).astype(np.float32)  # many ties
    probes, gallery = rng.integers(0, 4, n), rng.integers(0, 4, m)
    excluded = rng.random((n, m)) < 0.3
    found = rank(distances, probes, gallery, excluded)
    for i in range(n):
        expected = naive(
            distances[i].tolist(), (gallery == probes[i]).tolist(), excluded[i].tolist()
        )
        assert found.first_mate[i] == expected[0]
        np.testing.assert_allclose(
            [found.average_precision[i], found.inverse_penalty[i]], expected[1:], rtol=1e-12
        )


def test_rankings_do_not_depend_on_how_the_work_is_cut() -> None:
    rng = np.random.default_rng(0)
    distances = rng.random((10, 12)).astype(np.float32)
    probes, gallery = rng.integers(0, 4, 10), rng.integers(0, 4, 12)
    whole = rank(distances, probes, gallery)
    pieces = rank(distances, probes, gallery, at_once=3)
    np.testing.assert_array_equal(pieces.first_mate, whole.first_mate)
    np.testing.assert_array_equal(pieces.average_precision, whole.average_precision)


def test_a_network_that_tells_nobody_apart_scores_chance() -> None:
    subjects = np.arange(8)
    collapsed = rank(np.zeros((8, 8), np.float32), subjects, subjects)
    assert collapsed.hits(1).mean() == 1 / 8


def test_a_probe_without_mates_misses_and_has_no_precision() -> None:
    found = rank(np.zeros((1, 2), np.float32), np.array(["a"]), np.array(["b", "c"]))
    assert found.hits(5).tolist() == [0.0]
    assert not found.has_mate.any()
    assert np.isnan(found.average_precision).all()


def test_an_empty_gallery_holds_no_mate() -> None:
    found = rank(np.zeros((2, 0), np.float32), np.array(["a", "b"]), np.array([], np.str_))
    assert found.hits(1).tolist() == [0.0, 0.0]


def test_labels_that_do_not_fit_the_distances_are_refused() -> None:
    with pytest.raises(ValueError, match="3 probes"):
        rank(np.zeros((2, 2), np.float32), np.arange(3), np.arange(2))


def curve(found: Ranking, ranks: int) -> list[float]:
    """The CMC curve: share of probes hit at 1, 2, …; probes without mates left out."""
    return [float(found.hits(k)[found.has_mate].mean()) for k in range(1, ranks + 1)]


def test_rank_curves_and_precisions_equal_the_reference(golden: Any) -> None:
    arrays, expected = golden.arrays, golden.results["rank"]
    found = rank(arrays["rank/dist"], arrays["rank/q_labels"], arrays["rank/g_labels"])
    valid = found.has_mate
    assert valid.sum() == expected["evaluate_rank"]["n_valid"]
    np.testing.assert_allclose(curve(found, 50), arrays["rank/cmc"], atol=1e-7)
    np.testing.assert_allclose(found.average_precision[valid], arrays["rank/all_AP"], rtol=1e-12)
    np.testing.assert_allclose(found.inverse_penalty[valid], arrays["rank/all_INP"], rtol=1e-12)
    assert found.hits(5).mean() == expected["compute_ACC_mAP_rank5_nomask"]["acc"]


def test_rankings_without_the_own_camera_equal_the_reference(golden: Any) -> None:
    arrays, expected = golden.arrays, golden.results["rank"]
    same_camera = arrays["rank/q_cams"][:, None] == arrays["rank/g_cams"][None, :]
    same_subject = arrays["rank/q_labels"][:, None] == arrays["rank/g_labels"][None, :]
    found = rank(
        arrays["rank/dist"],
        arrays["rank/q_labels"],
        arrays["rank/g_labels"],
        same_camera & same_subject,
    )
    np.testing.assert_allclose(curve(found, 50), arrays["rank/many_cmc"], atol=1e-7)
    for name, values in (("mAP", found.average_precision), ("mINP", found.inverse_penalty)):
        assert np.nanmean(values) == pytest.approx(expected["evaluate_many"][name], rel=1e-12)
    assert found.hits(1).mean() == expected["compute_ACC_mAP_viewmask"]["acc"]

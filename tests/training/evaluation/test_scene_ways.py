"""`benchmarks.scenes`: ways to mend a gallery of mixed views, on the same galleries."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.scenes import (
    WAYS,
    WITH_PRIOR,
    Floats,
    Gallery,
    Vectors,
    by_number,
    measure,
    within,
)
from models.comparison.similarity import index_vectors
from training.evaluation import LabelledSequences
from training.evaluation.mixed_gallery import MixedGallery

RULE = MixedGallery("", people=12, draws=3)


def scene() -> tuple[LabelledSequences, NDArray[np.float32]]:
    """Twelve people in three views that outweigh them, four walks each."""
    rng = np.random.default_rng(3)
    views = {view: 1.2 * rng.standard_normal((4, 8)) for view in ("000", "045", "090")}
    who = rng.standard_normal((12, 4, 8))
    labels = [(f"s{p:02d}", str(w), view) for p in range(12) for w in range(4) for view in views]
    noise = 0.5 * rng.standard_normal((len(labels), 4, 8))
    embeddings = np.array([who[int(s[1:])] + views[v] for s, _, v in labels]) + noise
    return LabelledSequences.of(*zip(*labels, strict=True)), embeddings.astype(np.float32)


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    sequences, embeddings = scene()
    vectors = index_vectors(embeddings).astype(np.float64)
    prior = within(vectors, np.unique(sequences.subjects, return_inverse=True)[1])
    return measure(sequences, embeddings, prior, RULE)


def test_every_way_says_how_each_kind_of_search_went(
    rows: dict[str, Any],
) -> None:
    assert list(rows) == [*WAYS, *WITH_PRIOR]
    kinds = {"another view", "same view", "enrolled in all views", "EER"}
    for row in rows.values():
        assert kinds <= set(row)
        for kind in kinds - {"EER"}:
            value, low, high = row[kind]["rank-1"]
            assert low <= value <= high
            assert row[kind]["found"][0] <= value


def test_covariances_within_persons_mend_what_views_spoil(
    rows: dict[str, Any],
) -> None:
    before = rows["as served"]["another view"]["rank-1"][0]
    for way in ("two covariances", "within persons, whitened", "shipped"):
        assert rows[way]["another view"]["rank-1"][0] > before + 10
    assert rows["two covariances"]["EER"] < rows["as served"]["EER"]


def test_walks_that_are_not_enrolled_are_never_learnt_from() -> None:
    sequences, embeddings = scene()
    seen = []

    def spied(gallery: Gallery) -> tuple[Floats, Vectors]:
        seen.append(gallery.vectors)
        return gallery.vectors, lambda vectors: vectors

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.scenes.WAYS", {"spied": (spied, WAYS["as served"][1])})
        measure(sequences, embeddings, None, RULE)
    vectors = index_vectors(embeddings).astype(np.float64)
    for enrolled, draw in zip(seen, RULE.galleries(sequences, 2), strict=True):
        np.testing.assert_array_equal(enrolled, vectors[draw.gallery])
        assert not set(draw.gallery.tolist()) & set(draw.probes.tolist())


def test_more_people_views_and_walks_are_rows_of_their_own() -> None:
    sequences, embeddings = scene()
    rows = by_number(sequences, embeddings, MixedGallery("", people=20, draws=2))
    assert list(rows) == [
        *(f"people: {n}" for n in (6, 8, 10)),
        *(f"views: {n}" for n in (1, 2, 3)),
        *(f"walks: {n}" for n in (1, 2, 3)),
    ]
    for row in rows.values():
        assert list(row) == ["as served", "shipped"]
    assert rows["views: 3"] == rows["walks: 2"]

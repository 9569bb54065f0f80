"""Scores of subjects and persons by several walks."""

import numpy as np
import pytest

from models.comparison.several import fused, subject_scores


def test_a_subject_scores_half_way_from_the_mean_of_the_walks_to_the_best() -> None:
    similarities = np.array([[0.9, 0.2, 0.1], [0.0, 0.4, 0.6]], np.float32)
    scores = subject_scores(similarities, np.array([1, 0, 1]), 3)
    expected = [[0.2, (0.9 + 0.5) / 2, -np.inf], [0.4, (0.6 + 0.3) / 2, -np.inf]]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_one_walk_a_subject_scores_its_own_similarity() -> None:
    similarities = np.array([0.3, -0.2])
    np.testing.assert_array_equal(subject_scores(similarities, np.array([1, 0]), 2), [-0.2, 0.3])


def test_an_empty_gallery_scores_nobody() -> None:
    scores = subject_scores(np.empty((2, 0)), np.empty(0, np.int64), 1)
    np.testing.assert_array_equal(scores, [[-np.inf], [-np.inf]])


@pytest.mark.parametrize("whose", [[0], [0, 2], [-1, 0]])
def test_entries_of_unknown_subjects_are_refused(whose: list[int]) -> None:
    with pytest.raises(ValueError, match=r"entries"):
        subject_scores(np.zeros((1, 2)), np.array(whose), 2)


def test_probes_of_one_person_count_alike() -> None:
    scores = np.array([[0.8, 0.1], [0.2, 0.5]])
    np.testing.assert_allclose(fused(scores), [0.5, 0.3])
    with pytest.raises(ValueError, match="probes"):
        fused(np.empty((0, 2)))

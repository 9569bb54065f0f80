"""Strangers are played by people who took no part in the fit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.card import CardThreshold
from models.comparison.scene import SceneSums, fit
from models.thresholds.calibration import CannotCalibrate
from service.gallery.reading import EmbeddedSequences
from service.job_types.scene_strangers import FOLDS, carried_over, strangers_left_out
from tests.service.scenes import people_in_views


def enrolled(people: NDArray[np.float32]) -> EmbeddedSequences:
    names = [f"p{person:02}" for person in range(len(people)) for _ in people[0]]
    ids = [str(number) for number in range(len(names))]
    return EmbeddedSequences(ids, names, [{}] * len(ids), people.reshape(-1, *people.shape[2:]), 0)


def everything(gallery: EmbeddedSequences) -> NDArray[np.bool_]:
    return np.ones(len(gallery.subject_ids), np.bool_)


def test_each_is_searched_by_a_fit_without_them() -> None:
    gallery = enrolled(people_in_views(8))
    found = strangers_left_out(gallery, everything(gallery), None)
    names = np.array(gallery.subject_ids)
    for name in np.unique(names):
        others = names != name
        transform = fit(gallery.embeddings[others], names[others].tolist()).transform
        assert transform is not None
        seen = transform.apply(gallery.embeddings)[:, 0]
        by_hand = (seen[~others] @ seen[others].T).max(axis=1)
        assert found[~others] == pytest.approx(by_hand, abs=1e-5)


def test_of_many_people_several_are_left_out_together() -> None:
    gallery = enrolled(people_in_views(FOLDS + 5))
    told: list[tuple[int, int]] = []
    cohort = SceneSums.of(people_in_views(10, seed=3).reshape(-1, 4, 16))
    found = strangers_left_out(
        gallery, everything(gallery), cohort, lambda done, total: told.append((done, total))
    )
    assert np.isfinite(found).all()
    assert told == [(fold, FOLDS) for fold in range(FOLDS)]


def test_where_a_fit_needs_every_single_person_there_is_no_threshold() -> None:
    gallery = enrolled(people_in_views(5))  # four are too few for a fit
    assert fit(gallery.embeddings, gallery.subject_ids).transform is not None
    with pytest.raises(CannotCalibrate, match="single people"):
        strangers_left_out(gallery, everything(gallery), None)


def test_a_cards_thresholds_are_carried_as_far_above_what_strangers_meet() -> None:
    plain, strangers = np.array([0.4, 0.5, 0.6]), np.array([0.1, 0.2, 0.3])
    card = [CardThreshold(target_fpir=0.01, gallery_subjects=100, threshold=0.7)]
    (carried,) = carried_over(card, plain, strangers)
    assert (carried.target_fpir, carried.gallery_subjects) == (0.01, 100)
    assert carried.threshold == pytest.approx(0.4)

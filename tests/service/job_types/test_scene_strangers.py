"""Strangers are played by people who took no part in the fit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.card import CardThreshold
from models.comparison.scene import SceneFit, SceneSums, fit, refit
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


def chosen(gallery: EmbeddedSequences, cohort: SceneSums | None = None) -> SceneFit:
    found = fit(gallery.embeddings, gallery.subject_ids, cohort=cohort)
    assert found.transform is not None
    return found


def test_each_is_searched_by_a_fit_without_them_and_subjects_are_scored_by_all_walks() -> None:
    gallery = enrolled(people_in_views(8))
    everybody = chosen(gallery)
    found = strangers_left_out(gallery, everything(gallery), None, everybody)
    names = np.array(gallery.subject_ids)
    for name in np.unique(names):
        others = names != name
        transform = refit(everybody, gallery.embeddings[others], names[others].tolist())
        seen = transform.apply(gallery.embeddings)[:, 0]
        alike = (seen[~others] @ seen[others].T).reshape(3, 7, 3)  # walks, subjects, their walks
        by_hand = ((alike.max(axis=2) + alike.mean(axis=2)) / 2).max(axis=1)
        assert found[~others] == pytest.approx(by_hand, abs=1e-5)


def test_of_many_people_several_are_left_out_together() -> None:
    gallery = enrolled(people_in_views(FOLDS + 5))
    told: list[tuple[int, int]] = []
    cohort = SceneSums.of(people_in_views(10, seed=3).reshape(-1, 4, 16))
    found = strangers_left_out(
        gallery,
        everything(gallery),
        cohort,
        chosen(gallery, cohort),
        lambda done, total: told.append((done, total)),
    )
    assert np.isfinite(found).all()
    assert told == [(fold, FOLDS) for fold in range(FOLDS)]


def test_a_single_person_meets_no_stranger() -> None:
    gallery = enrolled(people_in_views(8))
    first = everything(gallery) & (np.array(gallery.subject_ids) == "p00")
    with pytest.raises(CannotCalibrate, match="two subjects"):
        strangers_left_out(gallery, first, None, chosen(gallery))


def test_a_cards_thresholds_are_carried_as_far_above_what_strangers_meet() -> None:
    plain, strangers = np.array([0.4, 0.5, 0.6]), np.array([0.1, 0.2, 0.3])
    card = [CardThreshold(target_fpir=0.01, gallery_subjects=100, threshold=0.7)]
    (carried,) = carried_over(card, plain, strangers)
    assert (carried.target_fpir, carried.gallery_subjects) == (0.01, 100)
    assert carried.threshold == pytest.approx(0.4)

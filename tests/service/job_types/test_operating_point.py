from datetime import UTC, datetime

import pytest

from service.gallery.operating_point import CurvePoint, OperatingPoint, Rerun
from service.serving.thresholds import choose_threshold

POINT = OperatingPoint(
    threshold=0.62,
    interval=(0.6, 0.65),
    confidence=0.95,
    method="observed",
    target_fpir=0.01,
    gallery_subjects=100,
    gallery_sequences=420,
    calibrated_at=datetime(2026, 11, 22, tzinfo=UTC),
    digest="mine",
    curve=(CurvePoint(target_fpir=0.01, threshold=0.62, low=0.6, high=0.65, method="observed"),),
)


def test_a_gallery_is_stale_once_it_has_grown_by_a_fifth() -> None:
    assert not POINT.stale("mine", 119)
    assert POINT.stale("mine", 120)
    assert not POINT.stale("mine", 10)  # fewer to be taken for: the promise is kept


def test_a_gallery_is_stale_under_another_model() -> None:
    assert POINT.stale("another", 100)


def test_a_rerun_is_due_once_for_every_time_it_becomes_stale() -> None:
    assert not POINT.due("mine", 119)
    assert POINT.due("mine", 120)
    asked = POINT.model_copy(update={"rerun": Rerun(subjects=120, digest="mine")})
    assert not asked.due("mine", 143)
    assert asked.due("mine", 144)
    assert asked.due("another", 120)


def test_what_is_kept_comes_back() -> None:
    assert OperatingPoint.of(POINT.kept()) == POINT
    assert OperatingPoint.of(None) is None


def test_one_that_was_kept_before_there_were_curves_comes_back_as_it_was() -> None:
    kept = POINT.kept()
    del kept["curve"]
    before = OperatingPoint.of(kept)
    assert before is not None
    assert before.curve == ()
    assert before.kept() == kept


def test_the_gallerys_threshold_decides_before_the_models_and_after_the_requests() -> None:
    calibrated = choose_threshold(None, POINT, 100, "mine", 0.5)
    assert (calibrated.value, calibrated.source) == (0.62, "gallery")
    asked = choose_threshold(0.3, POINT, 100, "mine", 0.5)
    assert (asked.value, asked.source) == (0.3, "request")
    assert choose_threshold(None, None, 0, "mine", 0.5).source == "model"


@pytest.mark.parametrize(("subjects", "stale"), [(100, False), (120, True)])
def test_the_operating_point_says_what_is_promised_and_whether_it_is_stale(
    subjects: int, stale: bool
) -> None:
    shown = choose_threshold(None, POINT, subjects, "mine", None).operating_point
    assert shown == {
        "interval": [0.6, 0.65],
        "confidence": 0.95,
        "method": "observed",
        "target_fpir": 0.01,
        "gallery_subjects": 100,
        "gallery_sequences": 420,
        "calibrated_at": "2026-11-22T00:00:00Z",
        "stale": stale,
    }


def test_a_threshold_of_another_models_similarities_is_never_used() -> None:
    chosen = choose_threshold(None, POINT, 100, "another", 0.5)
    assert (chosen.value, chosen.source, chosen.operating_point) == (0.5, "model", None)

"""Which similarity counts as a match, and who says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from service.foundation.errors import Invalid, Reason
from service.gallery.operating_point import OperatingPoint
from service.serving.model_in_use import ModelInUse

ThresholdSource = Literal["request", "gallery", "model"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A similarity from which on two walks count as one person's."""

    value: float
    source: ThresholdSource
    operating_point: dict[str, Any] | None


def threshold_for(
    requested: float | None, kept: dict[str, Any] | None, subjects: int, model: ModelInUse
) -> Threshold:
    """The same as below, from what a gallery's row keeps as its operating point."""
    point = OperatingPoint.of(kept)
    return choose_threshold(requested, point, subjects, model.digest, model.threshold)


def choose_threshold(
    requested: float | None,
    operating_point: OperatingPoint | None,
    subjects: int,
    digest: str,
    models_own: float | None,
) -> Threshold:
    """The request's threshold, else the gallery's calibrated one, else the checkpoint's own.

    A gallery's operating point holds for the checkpoint it was measured with and no other; one that
    is stale because the gallery, of `subjects` now, has grown says so and still decides. Raises
    `Invalid` when nobody has a threshold.
    """
    point = operating_point
    if point is not None and point.digest != digest:
        point = None
    shown = None if point is None else point.shown(digest, subjects)
    if requested is not None:
        return Threshold(requested, "request", shown)
    if point is not None:
        return Threshold(point.threshold, "gallery", shown)
    if models_own is not None:
        return Threshold(models_own, "model", None)
    raise Invalid(
        "The active model's card carries no threshold and the gallery is not calibrated: send "
        "`threshold`, or calibrate the gallery.",
        Reason("threshold", "required"),
        slug="threshold-required",
    )

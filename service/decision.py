"""Which similarity counts as a match, and who says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from service.errors import Invalid, Reason

ThresholdSource = Literal["request", "gallery", "model"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A similarity from which on two walks count as one person's."""

    value: float
    source: ThresholdSource
    operating_point: dict[str, Any] | None


def choose_threshold(
    requested: float | None,
    operating_point: dict[str, Any] | None,
    digest: str,
    models_own: float | None,
) -> Threshold:
    """The request's threshold, else the gallery's calibrated one, else the checkpoint's own.

    A gallery's operating point holds for the checkpoint it was measured with and no other. Raises
    `Invalid` when nobody has one.
    """
    measured = (
        operating_point
        if operating_point is not None and operating_point.get("digest") == digest
        else None
    )
    shown = (
        None
        if measured is None
        else {key: value for key, value in measured.items() if key not in ("digest", "threshold")}
    )
    if requested is not None:
        return Threshold(requested, "request", shown)
    if measured is not None:
        return Threshold(float(measured["threshold"]), "gallery", shown)
    if models_own is not None:
        return Threshold(models_own, "model", None)
    raise Invalid(
        "The active model's card carries no threshold and the gallery is not calibrated: send "
        "`threshold`, or calibrate the gallery.",
        Reason("threshold", "required"),
        slug="threshold-required",
    )

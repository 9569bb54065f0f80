"""From a measured open-set error to the thresholds that a card carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from models.card import CardThreshold

# The operating point that decides by default.
DEFAULT_TARGET_FPIR = 0.01
DEFAULT_GALLERY_SUBJECTS = 100


def operating_points(
    row: Mapping[str, Any], *, extrapolated: bool = True
) -> tuple[CardThreshold, ...]:
    """The thresholds of a row of an evaluation's result, as `EvaluationResult.to_dict` gives it.

    Empty if open-set errors were not measured, or if probes were tried mirrored as well: the
    nearer of two counts there, so strangers come nearer than in a service, which compares a walk
    once.

    Args:
        row: of the checkpoint.
        extrapolated: also those for a rate below what the comparisons could show.
    """
    if row["mirrored"] or row["open_set"] is None:
        return ()
    return tuple(
        CardThreshold(
            target_fpir=found["target_fpir"],
            gallery_subjects=found["gallery_subjects"],
            threshold=round(found["threshold"]["value"], 4),
        )
        for found in row["open_set"]["thresholds"]
        if found["threshold"]["value"] is not None and (extrapolated or not found["extrapolated"])
    )


def threshold_at(
    points: Iterable[CardThreshold],
    target_fpir: float = DEFAULT_TARGET_FPIR,
    gallery_subjects: int = DEFAULT_GALLERY_SUBJECTS,
) -> float | None:
    """The threshold for a rate and a gallery's size; None if no point has both."""
    wanted = (target_fpir, gallery_subjects)
    return next(
        (p.threshold for p in points if (p.target_fpir, p.gallery_subjects) == wanted), None
    )

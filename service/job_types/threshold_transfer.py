"""Threshold transfer: a threshold for a new model, from the old model's.

A checkpoint fresh from a distillation has no threshold of its own, and a small gallery cannot be
calibrated; without a threshold its searches could not be decided after the change of model. So the
old threshold is transferred: the new one lies as many standard deviations above the similarities of
strangers as the old one did. It promises no rate (its `method` is "carried"); the gallery is
calibrated when it has grown by a fifth, like a stale one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.card import Card
from models.thresholds.calibration import CONFIDENCE, stranger_similarities
from service.gallery.operating_point import OperatingPoint
from service.gallery.reading import read_pairs
from service.gallery.tables import SubjectRow
from service.storage.database import now

TARGET_FPIR = 0.01
"""What the gallery is calibrated for once that is possible."""

_MOST_SUBJECTS = 500  # a larger gallery can be calibrated


def transferred_threshold(
    threshold: float, before: NDArray[np.float64], after: NDArray[np.float64]
) -> float:
    """The threshold that lies as far above strangers' similarities as the old one did.

    Args:
        threshold: the old model's.
        before: strangers' similarities with the old model [n].
        after: with the new one [n].
    """
    scale = float(after.std() / before.std()) if before.std() > 1e-9 else 1.0
    return min(1.0, float(after.mean()) + (threshold - float(before.mean())) * scale)


def transfer_threshold(
    engine: Engine, gallery_id: str, threshold: float, new: Card, old: Card, target_fpir: float
) -> OperatingPoint | None:
    """The old threshold as an operating point of the new model; None with fewer than 2 subjects.

    For a gallery that both have embedded; `target_fpir` is what it is calibrated for later.
    """
    people = select(SubjectRow.subject_id).where(SubjectRow.gallery_id == gallery_id)
    with Session(engine) as session:
        subjects = session.scalars(people.order_by(SubjectRow.subject_id).limit(_MOST_SUBJECTS))
        pairs = read_pairs(engine, gallery_id, subjects.all(), new.digest, old.digest)
    found = 0 if pairs is None else len(np.unique(pairs.subjects))
    if pairs is None or found < 2:
        return None
    return OperatingPoint(
        threshold=transferred_threshold(
            threshold,
            stranger_similarities(pairs.old, pairs.subjects, old.metric),
            stranger_similarities(pairs.new, pairs.subjects, new.metric),
        ),
        interval=None,
        confidence=CONFIDENCE,
        method="carried",
        target_fpir=target_fpir,
        gallery_subjects=found,
        gallery_sequences=len(pairs.subjects),
        calibrated_at=now(),
        digest=new.digest,
    )

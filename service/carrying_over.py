"""A decision carried over to a model that brings no threshold, in a gallery that can show none.

A checkpoint fresh from a distillation has no threshold of its own, and a small gallery cannot be
calibrated. Changing its model must not end in searches that nobody can decide. So the old threshold
goes to where it stood: as many standard deviations above what strangers meet with the new model as
it was with the old one. That promises no rate, and says so (`method` "carried"); the gallery is
calibrated when it has grown by a fifth, as a stale one is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from models.thresholds.calibration import CONFIDENCE, stranger_similarities
from service.calibration import CalibrationModel
from service.database import now
from service.gallery.tables import SubjectRow
from service.operating_point import OperatingPoint
from service.paired_embeddings import read_pairs

TARGET_FPIR = 0.01
"""What the gallery is calibrated for once that is possible."""

_MOST_SUBJECTS = 500  # more can be calibrated


def carried_over(
    threshold: float, before: NDArray[np.float64], after: NDArray[np.float64]
) -> float:
    """The threshold that lies as far above strangers' similarities as the old one did.

    Args:
        threshold: that decided so far.
        before: what strangers meet with the old model [n].
        after: the same with the new one [n].
    """
    scale = float(after.std() / before.std()) if before.std() > 1e-9 else 1.0
    return min(1.0, float(after.mean()) + (threshold - float(before.mean())) * scale)


def carry_over(
    engine: Engine,
    gallery_id: str,
    threshold: float,
    new: CalibrationModel,
    old: CalibrationModel,
    target_fpir: float,
) -> OperatingPoint | None:
    """The old threshold as an operating point of the new model; None with fewer than 2 people.

    For a gallery that both have embedded; `target_fpir` is what it is calibrated for later.
    """
    people = select(SubjectRow.subject_id).where(SubjectRow.gallery_id == gallery_id)
    with Session(engine) as session:
        subjects = session.scalars(people.order_by(SubjectRow.subject_id).limit(_MOST_SUBJECTS))
        pairs = read_pairs(engine, gallery_id, subjects.all(), new.digest, old.digest)
    if pairs is None or len(np.unique(pairs.subjects)) < 2:
        return None
    return OperatingPoint(
        threshold=carried_over(
            threshold,
            stranger_similarities(pairs.old, pairs.subjects, old.metric),
            stranger_similarities(pairs.new, pairs.subjects, new.metric),
        ),
        interval=None,
        confidence=CONFIDENCE,
        method="carried",
        target_fpir=target_fpir,
        gallery_subjects=len(np.unique(pairs.subjects)),
        gallery_sequences=len(pairs.subjects),
        calibrated_at=now(),
        digest=new.digest,
    )

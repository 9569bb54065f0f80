"""The threshold that decides a search: which one applies, and when it is calibrated again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Engine, func, or_, select, update
from sqlalchemy.orm import Session

from models.card import Metric, ModelReference
from service.foundation.errors import Invalid, Reason
from service.gallery.active_model import lock_gallery
from service.gallery.operating_point import OperatingPoint, Rerun
from service.gallery.ranking import GallerySearch
from service.gallery.scenes import version_in
from service.gallery.store import Head
from service.gallery.tables import GalleryRow, SubjectRow
from service.jobs.queue import enqueue_unless_claimed
from service.storage.database import writing

CALIBRATE: Final = "calibrate"
"""The type of calibration jobs."""
CALIBRATION_CLAIM: Final = "calibrate:{gallery}"
"""What only one unfinished calibration of a gallery may claim."""

ThresholdSource = Literal["request", "gallery", "model"]


@dataclass(frozen=True, slots=True)
class ModelInUse(ModelReference):
    """A loaded model, with its card's own threshold and metric."""

    threshold: float | None
    metric: Metric


@dataclass(frozen=True, slots=True)
class Threshold:
    """A similarity from which on two walks count as one person's."""

    value: float
    source: ThresholdSource
    operating_point: dict[str, Any] | None


def threshold_for(
    requested: float | None, head: Head, index: GallerySearch, model: ModelInUse
) -> Threshold:
    """`choose_threshold` for what an index of this gallery, under this model, compares.

    A process may search by a scene transform that the rows know no more, or not yet: it decides by
    what was found with that transform.
    """
    scene = index.scene
    kept = head.point_for(model.digest, index.scene_version)
    if kept is None and scene is not None:
        kept = scene.operating_point
    point, own = OperatingPoint.of(kept), model.threshold
    return choose_threshold(
        requested, point, index.subjects, model.digest, own, index.scene_version
    )


def choose_threshold(
    requested: float | None,
    operating_point: OperatingPoint | None,
    subjects: int,
    digest: str,
    models_own: float | None,
    scene: str | None = None,
) -> Threshold:
    """The request's threshold, else the gallery's calibrated one, else the checkpoint's own.

    A gallery's operating point holds only for the checkpoint that it was measured with, and the
    scene transform, of which `scene` is the version; the checkpoint's own threshold holds without
    one. A point that is stale, because the gallery has grown to `subjects`, says so and still
    decides. Raises `Invalid` when there is no threshold.
    """
    point = operating_point
    if point is not None and (point.digest, point.scene) != (digest, scene):
        point = None
    shown = None if point is None else point.shown(digest, subjects)
    if requested is not None:
        return Threshold(requested, "request", shown)
    if point is not None:
        return Threshold(point.threshold, "gallery", shown)
    if models_own is not None and scene is None:
        return Threshold(models_own, "model", None)
    raise Invalid(
        "The active model's card carries no threshold and the gallery is not calibrated: send "
        "`threshold`, or calibrate the gallery.",
        Reason("threshold", "required"),
        slug="threshold-required",
    )


def keep(session: Session, gallery_id: str, point: OperatingPoint) -> bool:
    """Make an operating point the gallery's, in a transaction that holds the write lock.

    Returns False when the gallery was erased meanwhile, or given a model of another digest or
    another scene transform.
    """
    if not lock_gallery(session, gallery_id):
        return False
    if version_in(session, gallery_id, point.digest) != point.scene:
        return False
    changed = session.execute(
        update(GalleryRow)
        .where(
            GalleryRow.id == gallery_id,
            or_(GalleryRow.active_digest.is_(None), GalleryRow.active_digest == point.digest),
        )
        .values(operating_point=point.kept())
        .returning(GalleryRow.id)
    )
    return changed.one_or_none() is not None


def queue_if_stale(session: Session, gallery: str, digest: str) -> None:
    """Queue a calibration when the gallery's is stale; at most one for each time it became so.

    `digest` is of the deployment's own model, for a gallery that has not been given another one.

    For a transaction that holds the write lock, such as that of an enrolment. A re-run that failed
    is not tried again before the gallery has grown by another fifth or the model is another.
    """
    row = session.execute(
        select(GalleryRow.id, GalleryRow.operating_point, GalleryRow.active_digest)
        .where(GalleryRow.name == gallery)
        .with_for_update()
    ).one_or_none()
    point = None if row is None else OperatingPoint.of(row.operating_point)
    if row is None or point is None:
        return
    # A process may go on with the old model for a moment after the gallery got another one.
    digest = row.active_digest or digest
    subjects = session.scalar(select(func.count()).where(SubjectRow.gallery_id == row.id)) or 0
    if not point.due(digest, subjects):
        return
    request = {"gallery": gallery, "target_fpir": point.target_fpir}
    claim = CALIBRATION_CLAIM.format(gallery=gallery)
    enqueue_unless_claimed(session, CALIBRATE, request, claim=claim)
    asked = point.model_copy(update={"rerun": Rerun(subjects=subjects, digest=digest)})
    session.execute(
        update(GalleryRow).where(GalleryRow.id == row.id).values(operating_point=asked.kept())
    )


def queue_stale(engine: Engine, galleries: Iterable[str], digest: str) -> None:
    """Call `queue_if_stale` for each gallery, in a transaction each: the model may be new."""
    for gallery in galleries:
        with Session(writing(engine)) as session, session.begin():
            queue_if_stale(session, gallery, digest)

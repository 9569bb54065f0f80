"""A gallery's threshold: kept with the gallery, and measured again when it is stale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Engine, func, or_, select, update
from sqlalchemy.orm import Session

from service.gallery.operating_point import OperatingPoint, Rerun
from service.gallery.tables import GalleryRow, SubjectRow
from service.jobs.queue import queue_unless_claimed
from service.storage.database import writing


def keep(session: Session, gallery_id: str, point: OperatingPoint) -> bool:
    """Make it what the gallery decides by.

    False when that gallery was erased meanwhile, or given a model whose similarities these are not.
    """
    digest = point.digest
    changed = session.execute(
        update(GalleryRow)
        .where(
            GalleryRow.id == gallery_id,
            or_(GalleryRow.active_digest.is_(None), GalleryRow.active_digest == digest),
        )
        .values(operating_point=point.kept())
        .returning(GalleryRow.id)
    )
    return changed.one_or_none() is not None


KIND: Final = "calibrate"


def claim(gallery: str) -> str:
    """What only one unfinished calibration of a gallery may hold."""
    return f"calibrate:{gallery}"


def queue_if_stale(session: Session, gallery: str, digest: str) -> None:
    """Queue a calibration when the gallery's is stale; at most one for each time it became so.

    `digest` is of the deployment's own model, for a gallery that has not been given another one.

    For a transaction that holds the write lock, such as that of an enrolment. A re-run that failed
    is not tried again before the gallery has grown by another fifth or the model is another.
    """
    row = session.execute(
        select(GalleryRow.id, GalleryRow.operating_point, GalleryRow.active_digest).where(
            GalleryRow.name == gallery
        )
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
    queue_unless_claimed(session, KIND, request, claim=claim(gallery))
    asked = point.model_copy(update={"rerun": Rerun(subjects=subjects, digest=digest)})
    session.execute(
        update(GalleryRow).where(GalleryRow.id == row.id).values(operating_point=asked.kept())
    )


def queue_stale(engine: Engine, galleries: Iterable[str], digest: str) -> None:
    """The same for these galleries, each in a transaction of its own: the model may be new."""
    for gallery in galleries:
        with Session(writing(engine)) as session, session.begin():
            queue_if_stale(session, gallery, digest)

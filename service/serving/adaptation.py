"""When a gallery's scene transform is fitted again: by jobs that nobody asked for.

Only galleries are that were adapted before, by hand. A transform follows the gallery as its
calibration does (see `service.serving.thresholds`): it is due when the gallery has a fifth more
walks, has lost people, or was given a model under which it has none.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.gallery.operating_point import GROWTH
from service.gallery.scenes import counts
from service.gallery.tables import GalleryRow, SceneRow
from service.jobs.queue import enqueue_unless_claimed

ADAPT: Final = "adapt"
"""The type of adaptation jobs."""
ADAPTATION_CLAIM: Final = "adapt:{gallery}"
"""What only one unfinished adaptation of a gallery may claim."""


def queue(session: Session, gallery: str) -> None:
    """Queue an adaptation, unless one is on its way, in a transaction that holds the write lock."""
    claim = ADAPTATION_CLAIM.format(gallery=gallery)
    enqueue_unless_claimed(session, ADAPT, {"gallery": gallery}, claim=claim)


def queue_if_due(session: Session, gallery: str, digest: str) -> None:
    """Queue an adaptation when one is due; at most one for each time it became so.

    `digest` is of the deployment's own model, for a gallery that has not been given another one.

    For a transaction that holds the write lock, such as that of an enrolment.
    """
    rows = session.execute(
        select(SceneRow, GalleryRow.id, GalleryRow.active_digest)
        .join(GalleryRow, GalleryRow.id == SceneRow.gallery_id)
        .where(GalleryRow.name == gallery)
    ).all()
    if not rows:
        return
    _, gallery_id, active = rows[0]
    digest = active or digest
    subjects, sequences = counts(session, gallery_id)
    row = next((row for row, _, _ in rows if row.digest == digest), None)
    if row is None:
        row = SceneRow(gallery_id=gallery_id, digest=digest)
        session.add(row)  # the counts follow before anything is flushed
    elif subjects >= row.gallery_subjects and not (
        sequences > row.gallery_sequences and sequences >= GROWTH * row.gallery_sequences
    ):
        return
    row.gallery_subjects, row.gallery_sequences = subjects, sequences
    session.flush()
    queue(session, gallery)

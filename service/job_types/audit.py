"""Audits: `gaitid audit-gallery` of a gallery as it is now, with the active model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from service.foundation.settings import Settings
from service.gallery.tables import GalleryRow, SequenceRow
from service.job_types.gallery_audit import Audited
from service.job_types.measuring import measuring_step
from service.job_types.requests import AuditRequest
from service.jobs.findings import named_in, note_findings, without
from service.jobs.job import Job, JsonObject
from service.jobs.plan import JobRefused, Outcome, Step, scratch


def claim(gallery: str) -> str:
    """What only one unfinished audit of a gallery may hold."""
    return f"audit:{gallery}"


class AuditJob:
    """Lists what in a gallery attracts other people."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Compare everybody with everybody else, in one command."""
        request = AuditRequest.model_validate(job.request)
        step = measuring_step(
            self._settings, self._engine, "audit", request.gallery, _found(folder), "audit-gallery",
        )  # fmt: skip
        return (step,)

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Take over what was found, less what was erased meanwhile."""
        audited = Audited.model_validate_json(_found(folder).read_bytes())
        result = audited.audit.model_dump(mode="json")
        gallery = AuditRequest.model_validate(job.request).gallery

        def settle(session: Session) -> None:
            if not _keep_enrolled(session, audited.gallery_id, result):
                raise JobRefused("the gallery was erased while it was audited")
            note_findings(session, gallery, job.id)

        return Outcome(result, also=settle)


def _keep_enrolled(session: Session, gallery_id: str, result: JsonObject) -> bool:
    """Take out of a new audit, in place, what was erased or changed hands since.

    Returns whether the gallery is still there.

    For the transaction that ends the job: an erasure comes before it, or finds its findings.
    """
    gallery = select(GalleryRow.id).where(GalleryRow.id == gallery_id).with_for_update()
    if session.scalar(gallery) is None:
        return False
    named = named_in(result)
    query = select(SequenceRow.id, SequenceRow.subject_id)
    there = session.execute(query.where(SequenceRow.id.in_([one for one, _ in named])))
    gone = named - {(row.id, row.subject_id) for row in there}
    result.update(without(result, {one for one, _ in gone}))
    return True


def _found(folder: Path) -> Path:
    return scratch(folder).absolute() / "audit.json"

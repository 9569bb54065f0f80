"""Audits: `gaitid audit-gallery` of a gallery as it is now, with the active model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.gallery_audit import Audited
from service.jobs.audit_findings import keep_enrolled, note_findings
from service.jobs.job import Job
from service.jobs.measuring import measuring_step
from service.jobs.plan import JobRefused, Outcome, Step, scratch
from service.jobs.requests import AuditRequest
from service.settings import Settings


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
            if not keep_enrolled(session, audited.gallery_id, result):
                raise JobRefused("the gallery was erased while it was audited")
            note_findings(session, gallery, job.id)

        return Outcome(result, also=settle)


def _found(folder: Path) -> Path:
    return scratch(folder).absolute() / "audit.json"

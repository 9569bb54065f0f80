"""What names people in the results of jobs, and the walks that jobs found: forgotten together."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.gallery import found_walks
from service.jobs.findings import forget_expired, forget_findings
from service.storage.database import writing


def forget_named(
    session: Session, gallery: str, sequence_ids: Collection[str] | None = None
) -> None:
    """Forget these sequences, or all of a gallery's, where jobs name them.

    With a walk in footage that was taken for one of them go its silhouettes.
    """
    found_walks.remove(session, forget_findings(session, gallery, sequence_ids))


def forget_old(engine: Engine, at: datetime) -> int:
    """Forget what jobs found in footage and may not keep any longer; returns how many jobs."""
    with Session(writing(engine)) as session, session.begin():
        over = forget_expired(session, at)
        found_walks.remove_of_jobs(session, over)
    return len(over)

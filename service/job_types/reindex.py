"""Reindexing: `gaitid reindex-gallery`, then new indexes in every process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from service.foundation.settings import Settings
from service.gallery.active_model import lock_gallery, renew_indexes
from service.job_types.datasets import deployment, program
from service.job_types.reindexing import Reindexed
from service.job_types.requests import ReindexRequest
from service.jobs.job import Job
from service.jobs.plan import JobRefused, Outcome, Step, partial, scratch


class ReindexJob:
    """Makes a gallery's embeddings complete, and its indexes equal to the database."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Check, complete and prune, in one command."""
        gallery = ReindexRequest.model_validate(job.request).gallery
        out = _done(folder)
        command = program("service", "reindex-gallery", gallery, str(partial(out)))
        return (Step("reindexing", command, output=out, environment=deployment(self._settings)),)

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Have the indexes built anew, of the gallery that was reindexed if it is still there."""
        del job
        done = Reindexed.model_validate_json(_done(folder).read_bytes())

        def renew(session: Session) -> None:
            if not lock_gallery(session, done.gallery_id):
                raise JobRefused("the gallery was erased while it was reindexed")
            renew_indexes(session, done.gallery_id)

        return Outcome(done.model_dump(exclude={"gallery_id"}), also=renew)


def _done(folder: Path) -> Path:
    return scratch(folder).absolute() / "reindexed.json"

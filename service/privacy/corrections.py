"""Correct what is enrolled, with everything else that names whom the correction is about."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.gallery.editing import Corrected, InTransaction, Record
from service.gallery.snapshots import Snapshots
from service.privacy.listings import forget_named
from service.serving.adaptation import queue_if_due
from service.serving.lineage import TrainingRecord
from service.serving.thresholds import ModelInUse, queue_if_stale
from service.storage.writers import Writers

_log = logging.getLogger(__name__)

Correct = Callable[[Engine, InTransaction], Corrected[Record]]
"""One of the functions of `service.gallery.editing`, which knows what to correct."""


class Corrections:
    """The use case behind PATCH /sequences/{sequence_id} and PATCH /subjects/{subject_id}."""

    def __init__(
        self,
        engine: Engine,
        writers: Writers,
        record: TrainingRecord,
        own: ModelInUse,
        snapshots: Snapshots,
    ) -> None:
        """`own` is the deployment's own model."""
        self._snapshots = snapshots
        self._engine = engine
        self._writers = writers
        self._record = record
        self._digest = own.digest

    async def make(
        self, correct: Correct[Record], in_transaction: InTransaction
    ) -> Corrected[Record]:
        """Carry out a correction in one transaction, in which `in_transaction` runs last.

        Findings of jobs that name a walk which changed hands are dropped, models that learned
        from its former subject count as having learned from the present one, and a gallery whose
        calibration is stale is calibrated again, by a job.

        Raises what `correct` and `in_transaction` raise; nothing is changed then.
        """

        def settle(session: Session, corrected: Corrected[Record]) -> None:
            gallery, handover = corrected.gallery, corrected.handover
            if handover is not None:
                forget_named(session, gallery, handover.sequence_ids)
                self._record.carry(session, gallery, handover.subject_id, handover.to)
            queue_if_stale(session, gallery, self._digest)
            queue_if_due(session, gallery, self._digest)
            in_transaction(session, corrected)

        corrected = await self._writers.run(correct, self._engine, settle)
        try:
            await asyncio.to_thread(self._snapshots.sweep)
        except (OSError, SQLAlchemyError):  # the correction is committed; the next sweep does it
            _log.exception("after a correction something is left for a while")
        return corrected

"""Which workers there are: each says so in the database, and that it still lives.

This is for people and for jobs that wait; who may run a job is decided by its lease alone. Times
are the database's, so that the clocks of hosts do not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from sqlalchemy import Engine, Function, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.jobs.job import Job, Status
from service.jobs.labels import Labels, as_text, fits, from_text, in_words
from service.jobs.repeating import Repeating
from service.jobs.tables import WorkerRow
from service.storage.database import UtcDateTime, new_id, writing

_log = logging.getLogger(__name__)

_SIGNS = 3  # of life in the time after which a lease expires
_DEAD_AFTER = 2  # of these times
_FORGOTTEN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class LivingWorker:
    """A worker that gave a sign of life lately."""

    id: str
    labels: Labels
    started_at: datetime


class Presence:
    """Tells the others that a worker process lives, until the block ends."""

    def __init__(self, engine: Engine, labels: Labels, *, lease_seconds: float) -> None:
        self._engine = engine
        self._id = new_id()
        self._labels = as_text(labels)
        pause_s = lease_seconds / _SIGNS
        self._saying = Repeating(
            "presence",
            self._say,
            every_s=pause_s,
            retry_s=pause_s,
            failed="this worker's sign of life is not told",
        )

    def __enter__(self) -> Self:
        self._saying.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._saying.__exit__()
        try:
            with writing(self._engine).begin() as connection:
                connection.execute(delete(WorkerRow).where(WorkerRow.id == self._id))
        except SQLAlchemyError as error:  # then it is taken for dead a little later
            _log.warning("this worker's end is not told: %s", error)

    def _say(self) -> None:
        now = _now()
        with writing(self._engine).begin() as connection:
            mine = update(WorkerRow).where(WorkerRow.id == self._id).values(seen_at=now)
            if connection.execute(mine).rowcount:
                return
            row = {"id": self._id, "labels": self._labels, "started_at": now, "seen_at": now}
            connection.execute(insert(WorkerRow).values(row))
            today = connection.execute(select(now)).scalar_one()
            connection.execute(delete(WorkerRow).where(WorkerRow.seen_at < today - _FORGOTTEN))


def living_workers(engine: Engine, *, lease_seconds: float) -> list[LivingWorker]:
    """The workers that gave a sign of life within two times of a lease."""
    with Session(engine) as session:
        rows = session.execute(select(WorkerRow, _now()).order_by(WorkerRow.id)).all()
    longest = timedelta(seconds=_DEAD_AFTER * lease_seconds)
    return [
        LivingWorker(row.id, from_text(row.labels), row.started_at)
        for row, now in rows
        if now - row.seen_at <= longest
    ]


def waiting_for(engine: Engine, jobs: Iterable[Job], *, lease_seconds: float) -> dict[str, str]:
    """Why no living worker can take each of the queued jobs among `jobs` that none can, by id."""
    queued = [job for job in jobs if job.status is Status.QUEUED]
    workers = living_workers(engine, lease_seconds=lease_seconds) if queued else []
    told = {}
    for job in queued:
        if not workers:
            told[job.id] = "No worker runs; start one with `gaitid worker`."
        elif not any(fits(job.needs, worker.labels) for worker in workers):
            told[job.id] = (
                f"No worker has what the job needs: {in_words(job.needs)}. Start one on a machine "
                "that has it; `gaitid worker --label` says what it cannot find out by itself."
            )
    return told


def _now() -> Function[datetime]:
    return func.now(type_=UtcDateTime())

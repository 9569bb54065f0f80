"""The durable queue: every change of a job's state is one transaction here, and nowhere else.

A worker that runs a job holds a lease on it: a number, higher than that of every earlier lease on
the job. Every write of a worker names its number (a fencing token), so a worker that was presumed
dead cannot change a job that another one has taken over: it gets `LeaseLost` and must stop.

A lease contains no time. Its holder counts up its renewals, and an observer (see
`service.jobs.leases`) reclaims a job whose count stays the same for too long by its own clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Self

from sqlalchemy import ColumnElement, Engine, Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.foundation.errors import Conflict, NotFound, Reason
from service.foundation.settings import Settings
from service.foundation.tracing import traceparent
from service.jobs import labels
from service.jobs.events import Done, Evaluation, Failed, Progress, RunEvent, Start
from service.jobs.job import UNFINISHED, Job, JobEvent, JobProgress, JsonObject, Status
from service.jobs.tables import JobEventRow, JobRow
from service.storage.database import Page, in_pieces, new_id, now, writing

ERASED = "some of the walks that it was working on were erased; start it again"
_AS_KEPT = tuple(one.name for one in fields(Job) if one.name not in ("status", "progress", "needs"))
_NOTHING: Mapping[str, float] = {}
_PROMPT_S = 1.0  # within which the write lock is got when nobody keeps it for long

InTransaction = Callable[[Session, Job], None]
"""Called in the same transaction; what it raises rolls everything back."""


class LeaseLost(Exception):
    """The lease is not the job's newest any more, or the job does not run."""


@dataclass(frozen=True, slots=True)
class JobClass:
    """The jobs that a worker takes: those of `types` (`only`), or of all other types."""

    types: frozenset[str]
    only: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run `job` for now."""

    job: Job
    number: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How often the lease `number` on a running job was renewed."""

    job_id: str
    number: int
    renewals: int


@dataclass(frozen=True, slots=True)
class Updates:
    """New events of a job, the number of the newest one, and whether no more will come."""

    events: Sequence[JobEvent]
    newest: int
    ended: bool


class JobQueue:
    """Jobs in the database. Stateless: any number of processes may hold one on one database."""

    def __init__(
        self,
        engine: Engine,
        *,
        lease_seconds: float,
        max_attempts: int,
        several_hosts: bool = False,
    ) -> None:
        """Use the jobs in a database, which workers on `several_hosts` may reach."""
        self._engine = engine
        self.several_hosts = several_hosts
        self.lease_seconds = lease_seconds
        self._max_attempts = max_attempts

    @classmethod
    def of(cls, engine: Engine, settings: Settings) -> Self:
        """The queue of a deployment."""
        return cls(
            engine,
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.job_max_attempts,
            several_hosts=engine.dialect.name != "sqlite",
        )

    # For clients

    def enqueue(
        self,
        kind: str,
        request: JsonObject,
        *,
        claim: str | None = None,
        claimed_by: str = "name",
        job_id: str | None = None,
        needs: Mapping[str, float] = _NOTHING,
        in_transaction: InTransaction | None = None,
    ) -> Job:
        """Add a job of type `kind`, and call `in_transaction` in the same transaction.

        `job_id` is of `new_id`, for who has put something into the job's folder already. Only a
        worker whose labels have what it `needs` leases it.

        `claim` names something that only one unfinished job may hold, such as the name of the model
        that it will make; raises `Conflict`, naming the field `claimed_by`, when another unfinished
        job holds it.
        """
        try:
            with _writing(self._engine) as session:
                job = _add(session, kind, request, claim, job_id, needs)
                if in_transaction is not None:
                    in_transaction(session, job)
                return job
        except IntegrityError as error:
            raise Conflict(
                f"Another unfinished job already claims {claim}; wait for it or cancel it.",
                Reason(claimed_by, "claimed"),
                slug="job-conflict",
            ) from error

    def get(self, job_id: str) -> Job:
        """One job; raises `NotFound`."""
        with Session(self._engine) as session:
            return _snapshot(_find(session, select(JobRow), job_id))

    def page(self, *, status: Status | None, limit: int, cursor: str | None) -> Page[Job]:
        """List jobs, newest first; `cursor` is the `next_key` of the page before."""
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit + 1)
        if status is not None:
            query = query.where(JobRow.status == status)
        if cursor is not None:
            query = query.where(JobRow.id < cursor)
        with Session(self._engine) as session:
            jobs = tuple(_snapshot(row) for row in session.scalars(query))
        more = len(jobs) > limit
        return Page(jobs[:limit], jobs[limit - 1].id if more else None)

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, ask for a running one to be stopped.

        Asking again is fine; a job that has succeeded or failed raises `Conflict`.
        """
        with _writing(self._engine) as session:
            row = _find(session, select(JobRow).with_for_update(), job_id)
            match Status(row.status):
                case Status.QUEUED:
                    _end(session, row, Status.CANCELLED)
                case Status.RUNNING:
                    row.status = Status.CANCELLING
                    _append(session, row, "status", {"status": row.status})
                case Status.SUCCEEDED | Status.FAILED:
                    raise Conflict(
                        f"Job {job_id} has already ended: it {row.status}.",
                        Reason("job_id", "ended"),
                        slug="job-ended",
                    )
                case Status.CANCELLING | Status.CANCELLED:
                    pass
            return _snapshot(row)

    def events(self, job_id: str, *, after: int = 0, limit: int = 500) -> list[JobEvent]:
        """Return a job's events whose sequence number is above `after`, in order."""
        query = (
            select(JobEventRow)
            .where(JobEventRow.job_id == job_id, JobEventRow.sequence > after)
            .order_by(JobEventRow.sequence)
            .limit(limit)
        )
        with Session(self._engine) as session:
            return [
                JobEvent(row.sequence, row.at, row.kind, row.data) for row in session.scalars(query)
            ]

    def updates(self, seen: Mapping[str, int | None]) -> dict[str, Updates]:
        """New events of jobs, after the number of the last event that the caller has of each.

        Returns at most 500 events of a job, and none of one whose number is None.
        """
        newest = (
            select(func.max(JobEventRow.sequence))
            .where(JobEventRow.job_id == JobRow.id)
            .scalar_subquery()
        )
        query = select(JobRow.id, JobRow.status, newest).where(JobRow.id.in_(seen))
        with Session(self._engine) as session:
            standing = session.execute(query).all()
        news = {}
        for job_id, status, last in standing:
            known = seen[job_id]
            events = () if known in (None, last) else tuple(self.events(job_id, after=known))
            told = events[-1].sequence if events else last
            # An event after `last` came after the status was read, which is then read again.
            news[job_id] = Updates(events, told, ended=Status(status).final and told >= last)
        return news

    # For workers

    def lease(
        self, job_class: JobClass | None = None, has: labels.Labels | None = None
    ) -> Lease | None:
        """Lease the oldest queued job, of one class or of any; None without one.

        It is one whose needs the worker `has`; None has everything. This is no attempt yet: `begin`
        counts it.
        """
        taken = [JobRow.status == Status.QUEUED]
        if job_class is not None:
            named = JobRow.type.in_(job_class.types)
            taken.append(named if job_class.only else ~named)
        with Session(self._engine) as session:  # without the write lock: asked many times a second
            needs = session.scalars(select(JobRow.needs).where(*taken).distinct()).all()
        fitting = [
            text for text in needs if has is None or labels.fits(labels.from_text(text), has)
        ]
        if not fitting:
            return None
        taken.append(JobRow.needs.in_(fitting))
        with _writing(self._engine) as session:
            row = session.scalars(
                select(JobRow)
                .where(*taken)
                .order_by(JobRow.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if row is None:
                return None
            row.status = Status.RUNNING
            row.lease_number += 1
            row.started_at = row.started_at or now()
            return Lease(_snapshot(row), row.lease_number)

    def begin(self, lease: Lease) -> Job:
        """Count the attempt, now that it really starts; raises `LeaseLost`."""
        with self._holding(lease) as (session, row):
            row.attempts = lease.job.attempts + 1
            row.lease_renewals += 1
            if row.status == Status.RUNNING:  # else its history has the later word
                _append(session, row, "status", {"status": row.status, "attempt": row.attempts})
            return _snapshot(row)

    def heartbeats(self) -> list[Heartbeat]:
        """The heartbeat of every running job."""
        query = select(JobRow.id, JobRow.lease_number, JobRow.lease_renewals).where(_running())
        with Session(self._engine) as session:
            return [Heartbeat(*row) for row in session.execute(query)]

    def reclaim(self, expired: Heartbeat) -> None:
        """Take a job from a worker whose lease expired, unless it was renewed meanwhile.

        It is queued again, cancelled when that was asked for, or failed after too many attempts.
        Does nothing if it had to wait for the write lock: whoever held it kept live workers from
        renewing their leases too, and they go first.
        """
        begin = time.monotonic()
        with _writing(self._engine) as session:
            lost = session.scalars(
                select(JobRow)
                .where(_running(), JobRow.id == expired.job_id)
                .where(JobRow.lease_number == expired.number)
                .where(JobRow.lease_renewals == expired.renewals)
                .with_for_update(skip_locked=True)
            ).one_or_none()
            if time.monotonic() - begin >= _PROMPT_S:
                return
            if lost is not None:
                self._requeue(session, lost, "the worker that ran it disappeared")

    def lease_of(self, job_id: str, number: int) -> Lease:
        """The lease on a running job, for the command that its worker started.

        Such a command may end its own job. Raises `LeaseLost` when the worker runs it no more, or
        was told to stop.
        """
        with Session(self._engine) as session:
            row = session.get(JobRow, job_id)
            if row is None or row.status != Status.RUNNING or row.lease_number != number:
                raise LeaseLost(job_id)
            return Lease(_snapshot(row), number)

    def heartbeat(self, lease: Lease) -> None:
        """Renew the lease; raises `LeaseLost`."""
        with self._holding(lease) as (_, row):
            row.lease_renewals += 1

    def status(self, lease: Lease) -> Status:
        """Where the leased job stands now (to notice a cancellation); raises `LeaseLost`."""
        with Session(self._engine) as session:
            status = session.scalars(select(JobRow.status).where(*_leased(lease))).one_or_none()
        if status is None:
            raise LeaseLost(lease.job.id)
        return Status(status)

    def record(self, lease: Lease, events: Sequence[RunEvent]) -> None:
        """Add what the run reported to the job and to its history; raises `LeaseLost`."""
        with self._holding(lease) as (session, row):
            row.lease_renewals += 1
            for event in events:
                _apply(row, event)
                # A checkpoint's path is for this machine only, and history is for clients.
                content = event.model_dump(exclude={"event", "checkpoint"})
                _append(session, row, event.event, content)

    def note(
        self, lease: Lease, kind: str, data: JsonObject, in_transaction: Callable[[Session], None]
    ) -> None:
        """Add an event of a job's own to its history, with work in the same transaction.

        Raises `LeaseLost`, also when the job is being cancelled, and what the work raises.
        """
        with self._holding(lease) as (session, row):
            if row.status != Status.RUNNING:
                raise LeaseLost(lease.job.id)
            in_transaction(session)
            _append(session, row, kind, data)

    def write(self, lease: Lease, work: Callable[[Session], None]) -> None:
        """Call `work` in a transaction under the lease; raises `LeaseLost`, and what it raises."""
        with self._holding(lease) as (session, row):
            row.lease_renewals += 1
            work(session)

    def succeed(
        self,
        lease: Lease,
        result: JsonObject,
        in_transaction: Callable[[Session], None] = lambda _session: None,
    ) -> Job:
        """End the job well, calling `in_transaction` in the same transaction.

        Raises `LeaseLost`, and what `in_transaction` raises; the job then has not ended.
        """
        with self._holding(lease) as (session, row):
            in_transaction(session)
            _succeed(session, row, result)
            return _snapshot(row)

    def fail(self, lease: Lease, reason: str) -> Job:
        """End the job badly; raises `LeaseLost`."""
        with self._holding(lease) as (session, row):
            # A job whose walks were erased fails in many ways, none of which is the reason.
            _fail(session, row, ERASED if row.error == ERASED else reason)
            return _snapshot(row)

    def stopped(self, lease: Lease) -> Job:
        """End a job that was being cancelled, its process gone; raises `LeaseLost`."""
        with self._holding(lease) as (session, row):
            _end(session, row, Status.CANCELLED)
            return _snapshot(row)

    def retry(self, lease: Lease, reason: str) -> Job:
        """Queue the job again after a crash, or fail it after too many; raises `LeaseLost`.

        Counts as an attempt wherever it crashed; else a job that cannot begin would never end.
        """
        with self._holding(lease) as (session, row):
            row.attempts = lease.job.attempts + 1
            self._requeue(session, row, reason)
            return _snapshot(row)

    def release(self, lease: Lease, reason: str = "the worker was stopped") -> Job:
        """Queue the job again, which is not to blame; not counted as an attempt."""
        with self._holding(lease) as (session, row):
            row.attempts = lease.job.attempts
            self._requeue(session, row, reason)
            return _snapshot(row)

    def known(self, among: Sequence[str]) -> frozenset[str]:
        """Those of these ids that are jobs'."""
        found: set[str] = set()
        with Session(self._engine) as session:
            for some in in_pieces(among):
                found.update(session.scalars(select(JobRow.id).where(JobRow.id.in_(some))))
        return frozenset(found)

    def ended_before(self, moment: datetime, among: Sequence[str]) -> frozenset[str]:
        """Ids of those jobs, of these, that ended before a moment."""
        ended: set[str] = set()
        with Session(self._engine) as session:
            for some in in_pieces(among):
                query = select(JobRow.id).where(JobRow.id.in_(some), JobRow.finished_at < moment)
                ended.update(session.scalars(query))
        return frozenset(ended)

    def unfinished(self) -> frozenset[str]:
        """Ids of all jobs that have not ended."""
        query = select(JobRow.id).where(JobRow.status.in_(UNFINISHED))
        with Session(self._engine) as session:
            return frozenset(session.scalars(query))

    @contextmanager
    def _holding(self, lease: Lease) -> Iterator[tuple[Session, JobRow]]:
        """A transaction with the row of a leased job; raises `LeaseLost`."""
        with _writing(self._engine) as session:
            yield session, _held(session, lease)

    def _requeue(self, session: Session, row: JobRow, reason: str) -> None:
        if row.status == Status.CANCELLING:
            _end(session, row, Status.CANCELLED)
        elif row.attempts >= self._max_attempts:
            _fail(session, row, f"gave up after {row.attempts} attempts: {reason}")
        else:
            row.status = Status.QUEUED
            row.eta_s = None
            _append(session, row, "status", {"status": row.status, "reason": reason})


def enqueue_unless_claimed(
    session: Session, kind: str, request: JsonObject, *, claim: str | None
) -> Job | None:
    """Add a job within a transaction that holds the write lock, unless one holds the claim."""
    if claim and session.scalar(select(JobRow.id).where(JobRow.claim == claim)) is not None:
        return None
    try:
        with session.begin_nested():
            return _add(session, kind, request, claim)
    except IntegrityError:  # PostgreSQL: another transaction was a moment faster
        return None


def record_finished(session: Session, kind: str, request: JsonObject, result: JsonObject) -> Job:
    """Record, within the transaction that did it, a job that needed no worker."""
    job = _add(session, kind, request, None)
    row = session.get_one(JobRow, job.id)
    row.started_at = row.created_at
    _succeed(session, row, result)
    return _snapshot(row)


def require_running(session: Session, lease: Lease) -> None:
    """Raise `LeaseLost` when the job is being cancelled, or is another runner's."""
    if _held(session, lease).status != Status.RUNNING:
        raise LeaseLost(lease.job.id)


def cancel_jobs_using(session: Session, gallery: str) -> tuple[str, ...]:
    """Cancel the jobs that have begun to use a gallery's walks, in a transaction that erases some.

    A job that has not begun will read the gallery as it is then, and is left alone. Returns the ids
    of the jobs that were cancelled, or are to be.
    """
    begun = session.scalars(
        select(JobRow)
        .where(JobRow.status.in_(UNFINISHED))
        .where(JobRow.started_at.is_not(None))  # not `attempts`: a release takes its own back
        .order_by(JobRow.id)
        .with_for_update()
    )
    cancelled = []
    for row in begun:
        if row.request.get("dataset") != {"gallery": gallery}:
            continue
        row.error = ERASED
        if row.status == Status.QUEUED:
            _end(session, row, Status.CANCELLED)
        elif row.status == Status.RUNNING:
            row.status = Status.CANCELLING
            _append(session, row, "status", {"status": row.status})
        cancelled.append(row.id)
    return tuple(cancelled)


def _add(
    session: Session,
    kind: str,
    request: JsonObject,
    claim: str | None,
    job_id: str | None = None,
    needs: Mapping[str, float] = _NOTHING,
) -> Job:
    row = JobRow(
        id=job_id or new_id(), type=kind, status=Status.QUEUED, request=request, claim=claim,
        needs=labels.as_text(needs), traceparent=traceparent(), step=0, metrics={}, attempts=0,
        created_at=now(),
    )  # fmt: skip
    session.add(row)
    session.flush()
    _append(session, row, "status", {"status": row.status})
    return _snapshot(row)


@contextmanager
def _writing(engine: Engine) -> Iterator[Session]:
    """A session in one transaction that holds the write lock from its beginning."""
    with Session(writing(engine), expire_on_commit=False) as session, session.begin():
        yield session


def _find(session: Session, query: Select[JobRow], job_id: str) -> JobRow:
    possible = "\0" not in job_id  # which PostgreSQL refuses to compare with
    row = session.scalars(query.where(JobRow.id == job_id)).one_or_none() if possible else None
    if row is None:
        raise NotFound(
            f"There is no job {job_id!r}. GET /jobs lists them.",
            Reason("job_id", "not_found"),
            slug="job-not-found",
        )
    return row


def _running() -> ColumnElement[bool]:
    return JobRow.status.in_((Status.RUNNING, Status.CANCELLING))


def _leased(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return _running(), JobRow.id == lease.job.id, JobRow.lease_number == lease.number


def _held(session: Session, lease: Lease) -> JobRow:
    query = select(JobRow).where(*_leased(lease)).with_for_update()
    row = session.scalars(query).one_or_none()
    if row is None:
        raise LeaseLost(lease.job.id)
    return row


def _append(session: Session, row: JobRow, kind: str, data: JsonObject) -> None:
    newest = select(func.max(JobEventRow.sequence)).where(JobEventRow.job_id == row.id)
    sequence = (session.scalar(newest) or 0) + 1
    session.add(JobEventRow(job_id=row.id, sequence=sequence, at=now(), kind=kind, data=data))


def _apply(row: JobRow, event: RunEvent) -> None:
    match event:
        case Start():
            row.step, row.total_steps = event.step, event.total_steps
        case Progress():
            row.step, row.total_steps, row.eta_s = event.step, event.total_steps, event.eta_s
            row.metrics = {**row.metrics, **event.metrics}
        case Evaluation() | Done():
            row.metrics = {**row.metrics, **event.metrics}
        case Failed():
            pass


def _succeed(session: Session, row: JobRow, result: JsonObject) -> None:
    row.result = result
    row.error = None  # it may have been cancelled, and too late
    row.step = row.total_steps if row.total_steps is not None else row.step
    _end(session, row, Status.SUCCEEDED)


def _fail(session: Session, row: JobRow, reason: str) -> None:
    row.error = reason
    _end(session, row, Status.FAILED)


def _end(session: Session, row: JobRow, status: Status) -> None:
    row.status = status
    row.claim = row.eta_s = None
    row.finished_at = now()
    final = {"status": status, "result": row.result, "error": row.error, "metrics": row.metrics}
    _append(session, row, "status", final)


def _snapshot(row: JobRow) -> Job:
    total = row.total_steps
    if row.status == Status.SUCCEEDED:
        fraction = 1.0
    else:
        fraction = min(row.step / total, 1.0) if total else 0.0
    return Job(
        status=Status(row.status),
        needs=labels.from_text(row.needs),
        progress=JobProgress(fraction, row.step, total, row.eta_s),
        **{name: getattr(row, name) for name in _AS_KEPT},
    )

"""The audit record in its database: add lines, read them, forget erased subjects, drop old lines.

A line is committed before the answer that it is about is sent, so it survives `kill -9`. With
SQLite, lines about searches are not flushed to the disk one by one, because that would cost every
search a few milliseconds: a power cut may take the last seconds of them. All other lines are.
"""

from __future__ import annotations

import json
import secrets
import threading
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.engine import Row

from service.access.audit.chain import BEGINNING, FORGETTING, canonical, commitment, line_hash
from service.access.audit.entries import SERVICE, Actor, Entry, forgotten
from service.access.audit.tables import AuditRow, AuditTable
from service.foundation.logs import request_id
from service.foundation.settings import Settings
from service.storage.database import (
    check_sound,
    migrate,
    now,
    open_database,
    take_turns,
    writing,
)
from service.storage.vacuum import clear_traces, mark_for_vacuum, vacuum

_LAST = select(AuditRow.number, AuditRow.hash).order_by(AuditRow.number.desc()).limit(1)
_PAGE = 500
_CONNECTIONS = 4  # one writes, the others read
_TURN = "audit"
_SETTLED = timedelta(minutes=10)  # an enrolment is recorded a moment before it is committed


@dataclass(eq=False, slots=True)
class _Reading:
    """Something that was read and is to be recorded; `failed` if that could not be."""

    entry: Entry
    by: Actor
    context: Context
    failed: Exception | None = None


class AuditRecord:
    """Adds to the record and reads it; a process has one."""

    def __init__(
        self,
        settings: Settings,
        enrolled: Callable[[str, str], bool],
        *,
        clock: Callable[[], datetime] = now,
        settled: timedelta = _SETTLED,
        page: int = _PAGE,
    ) -> None:
        """Open the deployment's record and bring its schema up to date.

        `enrolled` says whether a gallery has a subject. A line that is younger than `settled` may
        name a subject whose enrolment is not committed yet. Lines are read `page` at a time.
        """
        url = settings.resolved_audit_url
        self._engine = open_database(
            url,
            synchronous="NORMAL",
            connections=_CONNECTIONS,
            statement_seconds=settings.database_statement_seconds,
        )
        migrate(self._engine, "audit")
        self._flushing = self._engine
        if self._engine.dialect.name == "sqlite":
            self._flushing = open_database(url)  # the same one; its commits wait for the disk
        check_sound(self._flushing)  # so that it, too, knows the files from the beginning
        self._enabled = settings.audit
        days = settings.audit_max_age_days
        self._max_age = None if days is None else timedelta(days=days)
        self._enrolled = enrolled
        self._clock = clock
        self._settled = settled
        self._page = page
        self._lock = threading.Lock()  # waiting for each other here is faster than in the database
        self._thread = ThreadPoolExecutor(1, "audit")
        self._waiting = deque[_Reading]()

    def close(self) -> None:
        """Finish what was begun, and close the database."""
        self._thread.shutdown()
        self._engine.dispose()
        self._flushing.dispose()

    def check(self) -> None:
        """Read a line; raises what SQLAlchemy raises if the database cannot be used."""
        if self._enabled:
            with self._engine.connect() as connection:
                connection.execute(select(AuditRow.number).limit(1))
            for engine in (self._engine, self._flushing):
                check_sound(engine)

    # Writing

    async def answered(self, entry: Entry, by: Actor) -> None:
        """Record that something was read, off the event loop; see `read`.

        What waits to be recorded at one moment is recorded in one transaction: servers on one
        database take turns at the record, and each turn may wait for the disk.
        """
        if not self._enabled:
            return
        reading = _Reading(entry, by, copy_context())  # has the request's id
        self._waiting.append(reading)
        await get_running_loop().run_in_executor(self._thread, self._read_waiting, reading)

    def _read_waiting(self, reading: _Reading) -> None:
        """Record a reading, unless one before it has, with all that wait; on the only thread."""
        if reading in self._waiting:
            together = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                with self._writing(self._engine) as connection:
                    for one in together:
                        one.context.run(self._add, connection, one.entry, one.by)
            except Exception as error:
                for one in together:
                    one.failed = error
        if reading.failed is not None:
            raise reading.failed
        self._forget_if_erased(reading.entry)

    def read(self, entry: Entry, by: Actor) -> None:
        """Record that something was read, such as a search, before it is answered.

        A subject who is erased meanwhile is not named: the erasure forgets the lines before it, and
        after it the subject is found not to be enrolled.
        """
        if self._enabled:
            self._append(self._engine, entry, by)
            self._forget_if_erased(entry)

    def _forget_if_erased(self, entry: Entry) -> None:
        if (
            entry.subject_id is not None
            and entry.gallery is not None
            and not self._enrolled(entry.gallery, entry.subject_id)
        ):
            self.forget(entry.gallery, entry.subject_id)

    def changed(self, entry: Entry, by: Actor) -> None:
        """Record a change within its transaction, before it is committed.

        If the commit fails, the record has a change too many, never one too few.
        """
        if self._enabled:
            self._append(self._flushing, entry, by)

    def forget(self, gallery: str, subject_id: str | None = None) -> None:
        """Remove an erased subject, or everybody in a gallery, from the record for good."""
        change = update(AuditRow).where(
            AuditRow.gallery == gallery, AuditRow.subject_id.is_not(None)
        )
        if subject_id is not None:
            change = change.where(AuditRow.subject_id == subject_id)
        with self._writing(self._flushing) as connection:
            if lines := connection.execute(change.values(subject_id=None, salt=None)).rowcount:
                mark_for_vacuum(connection)
                self._add(connection, forgotten(gallery, lines), SERVICE)
        clear_traces(self._flushing, AuditTable.metadata)

    def tidy(self) -> None:
        """Forget subjects who are not enrolled any more, and drop lines over the age limit.

        An erasure forgets its subjects itself. This is for an erasure whose process died, for what
        retention erased, and for enrolments that were recorded and then failed.
        """
        for gallery, subject_id in self._named():
            if not self._enrolled(gallery, subject_id):
                self.forget(gallery, subject_id)
        if self._max_age is not None:
            self._drop(self._clock() - self._max_age)
        alone = self._lock if self._engine.dialect.name == "sqlite" else nullcontext()
        with alone:
            vacuum(self._flushing, tables=AuditTable.metadata)
        # What died, or had to wait, before it did.
        clear_traces(self._flushing, AuditTable.metadata)

    # Reading

    def lines(
        self,
        *,
        after: int = 0,
        since: datetime | None = None,
        until: datetime | None = None,
        gallery: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield lines in order, with a number above `after`, from `since` to before `until`.

        The last one is the newest when reading begins, or the newest that accounts for a subject
        who was forgotten meanwhile.
        """
        query = select(*AuditRow.__table__.columns).order_by(AuditRow.number).limit(self._page)
        if since is not None:
            query = query.where(AuditRow.at >= since)
        if until is not None:
            query = query.where(AuditRow.at < until)
        if gallery is not None:
            query = query.where(AuditRow.gallery == gallery)
        newest = self._newest()
        while newest is not None:
            up_to = query.where(AuditRow.number <= newest)
            while rows := self._rows(up_to.where(AuditRow.number > after)):
                for row in rows:
                    yield _line(row)
                after = rows[-1].number
            newest = self._newest(AuditRow.action == FORGETTING, AuditRow.number > newest)

    def _newest(self, *which: ColumnElement[bool]) -> int | None:
        with self._engine.connect() as connection:
            return connection.scalar(select(func.max(AuditRow.number)).where(*which))

    def _rows(self, query: Select[*tuple[Any, ...]]) -> list[Row[*tuple[Any, ...]]]:
        with self._engine.connect() as connection:
            return list(connection.execute(query))

    def _named(self) -> list[tuple[str, str]]:
        query = (
            select(AuditRow.gallery, AuditRow.subject_id)
            .where(AuditRow.subject_id.is_not(None), AuditRow.at < self._clock() - self._settled)
            .distinct()
        )
        return [(row.gallery, row.subject_id) for row in self._rows(query)]

    def _drop(self, before: datetime) -> None:
        # From the beginning only, because a clock that was wrong may have put an old time between
        # new ones, and a gap would break the chain. The newest line stays, so that it goes on.
        young = select(func.min(AuditRow.number)).where(AuditRow.at >= before).scalar_subquery()
        newest = select(func.max(AuditRow.number)).scalar_subquery()
        with self._writing(self._flushing) as connection:
            gone = connection.execute(
                delete(AuditRow).where(AuditRow.number < func.coalesce(young, newest))
            ).rowcount
            if gone:
                mark_for_vacuum(connection)
        if gone:
            self._append(self._flushing, Entry("drop_old_lines", details={"lines": gone}), SERVICE)
            clear_traces(self._flushing, AuditTable.metadata)

    def _append(self, engine: Engine, entry: Entry, by: Actor) -> None:
        with self._writing(engine) as connection:
            self._add(connection, entry, by)

    def _add(self, connection: Connection, entry: Entry, by: Actor) -> None:
        """Add a line, in a transaction that excludes other writers."""
        salt = None if entry.subject_id is None else secrets.token_hex(16)
        line: dict[str, Any] = {
            "action": entry.action,
            "actor": by.kind,
            "key_id": by.key_id,
            "key_name": by.key_name,
            "request_id": request_id.get(),
            "gallery": entry.gallery,
            "subject_id": entry.subject_id,
            "salt": salt,
            "subject_commitment": None
            if entry.subject_id is None or salt is None
            else commitment(entry.subject_id, salt),
            "details": entry.details,
        }
        last = connection.execute(_LAST).one_or_none()
        number, previous = (1, BEGINNING) if last is None else (last.number + 1, last.hash)
        at = self._clock()
        line |= {"number": number, "at": at.isoformat(), "previous": previous}
        kept = {"at": at, "details": canonical(entry.details), "hash": line_hash(line)}
        connection.execute(insert(AuditRow), {**line, **kept})

    @contextmanager
    def _writing(self, engine: Engine) -> Iterator[Connection]:
        with self._lock, writing(engine).begin() as connection:
            take_turns(connection, _TURN)  # not the table's lock: a vacuum would be in its way
            yield connection


def _line(row: Row[Any]) -> dict[str, Any]:
    line = dict(row._mapping)
    return {**line, "at": row.at.isoformat(), "details": json.loads(row.details)}

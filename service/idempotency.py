"""Answers kept for idempotency keys, so that a retried POST is carried out once.

A request with an Idempotency-Key first takes a hold of the key. The holder's answer is kept for a
day and replayed to the same key and body; another body is refused; while a hold lasts, others get
409. Only successes are kept: a refused request changed nothing and may be tried again.

Exactly once, also through kill -9: work that writes to the database calls `keep` inside its own
transaction, so the work and its answer commit together, and a hold that ran out and was taken over
by a retry makes the first holder's `keep`, and with it the work, fail. What does not call `keep`
(a request whose answer is kept only after it) may be carried out again if the process dies between
the two and the client retries after the hold.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import JSON, CursorResult, Engine, Index, String, Text, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from service.database import Table, new_id, now, writing
from service.errors import Conflict, Invalid, Reason

HOLD = timedelta(minutes=2)
KEPT = timedelta(hours=24)
_PAGE = 500
# Whatever an answer's JSON has in quotes and could be an id: found at every quote, so that one
# within a text does not hide what follows it.
_QUOTED = re.compile(r'"(?=([A-Za-z0-9._:@-]{1,128})")')


class IdempotencyRow(Table):
    """One key: who holds it until when, or (with a status) the answer that is replayed."""

    __tablename__ = "idempotency"

    key_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    holder: Mapped[str] = mapped_column(String(36))
    held_until: Mapped[datetime]
    status: Mapped[int | None]
    headers: Mapped[dict[str, str]] = mapped_column(JSON)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_idempotency_created_at", "created_at"),)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response worth keeping."""

    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Hold:
    """The right to carry out the request behind a key."""

    key_hash: str
    holder: str


class IdempotencyStore:
    """Holds and answers in the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, caller: str, key: str, fingerprint: str) -> Hold | Answer:
        """Take a hold of the key, or get the answer to replay.

        Raises `Conflict` while another request holds the key and `Invalid` when the key was used
        for another request.
        """
        try:
            return self._take(caller, key, fingerprint)
        except IntegrityError as error:  # PostgreSQL: two requests insert the key at once
            raise _in_flight() from error

    def _take(self, caller: str, key: str, fingerprint: str) -> Hold | Answer:
        at = now()
        key_hash = hashlib.sha256(f"{caller}\0{key}".encode()).hexdigest()
        hold = Hold(key_hash, new_id())
        with Session(writing(self._engine)) as session, session.begin():
            session.execute(
                delete(IdempotencyRow).where(
                    or_(
                        IdempotencyRow.created_at < at - KEPT,
                        # A hold that ran out: its process died, or it is fenced off by `keep`. One
                        # that nobody gives was given before the clock was set back.
                        (IdempotencyRow.status.is_(None))
                        & (
                            (IdempotencyRow.held_until < at)
                            | (IdempotencyRow.held_until > at + 2 * HOLD)
                        ),
                    )
                )
            )
            row = session.scalar(
                select(IdempotencyRow).where(IdempotencyRow.key_hash == key_hash).with_for_update()
            )
            if row is None:
                session.add(
                    IdempotencyRow(
                        key_hash=key_hash,
                        fingerprint=fingerprint,
                        holder=hold.holder,
                        held_until=at + HOLD,
                        status=None,
                        headers={},
                        body="",
                        created_at=at,
                    )
                )
                return hold
            if row.fingerprint != fingerprint:
                raise Invalid(
                    "This Idempotency-Key was used for another request. Send a new key with a new "
                    "request; send exactly the same request to have its answer again.",
                    Reason("Idempotency-Key", "used_for_another_request"),
                    slug="idempotency-key-reused",
                )
            if row.status is None:
                raise _in_flight()
            return Answer(row.status, row.headers, row.body)

    def keep(self, hold: Hold, answer: Answer) -> None:
        """Keep an answer that no transaction has kept; a hold that is gone is left alone."""
        with Session(writing(self._engine)) as session, session.begin():
            _write(session, hold, answer)

    def release(self, hold: Hold) -> None:
        """Let the key go without an answer: the request was refused or failed."""
        with Session(writing(self._engine)) as session, session.begin():
            session.execute(
                delete(IdempotencyRow).where(
                    IdempotencyRow.key_hash == hold.key_hash,
                    IdempotencyRow.holder == hold.holder,
                    IdempotencyRow.status.is_(None),
                )
            )


def keep(session: Session, hold: Hold | None, answer: Answer) -> None:
    """Keep the answer in the transaction of the work itself; without a hold there is nothing to do.

    Raises `Conflict` when the hold ran out and the key went to a retry: the work must not commit.
    """
    if hold is not None and not _write(session, hold, answer):
        raise Conflict(
            "This request took so long that a retry with its Idempotency-Key took its place.",
            Reason("Idempotency-Key", "taken_over"),
            slug="idempotency-key-taken-over",
        )


def forget_answers_about(session: Session, names: Collection[str]) -> None:
    """Delete kept answers that name one of these subjects or sequences (they are erased)."""
    erased = frozenset(names)
    kept = select(IdempotencyRow.key_hash, IdempotencyRow.body).where(
        IdempotencyRow.status.is_not(None)
    )
    naming = [
        row.key_hash
        for row in session.execute(kept.execution_options(yield_per=_PAGE))
        if not erased.isdisjoint(_QUOTED.findall(row.body))
    ]
    _delete_answers(session, naming)


def forget_answers_at(session: Session, location: str) -> None:
    """Delete kept answers that made what was there, which is erased."""
    kept = select(IdempotencyRow.key_hash, IdempotencyRow.headers).where(
        IdempotencyRow.status.is_not(None)
    )
    rows = session.execute(kept.execution_options(yield_per=_PAGE))
    _delete_answers(
        session, [row.key_hash for row in rows if row.headers.get("location") == location]
    )


def _delete_answers(session: Session, key_hashes: Sequence[str]) -> None:
    for start in range(0, len(key_hashes), _PAGE):
        session.execute(
            delete(IdempotencyRow).where(
                IdempotencyRow.key_hash.in_(key_hashes[start : start + _PAGE])
            )
        )


def _in_flight() -> Conflict:
    return Conflict(
        "The first request with this Idempotency-Key is still being carried out. "
        "Try again in a moment.",
        Reason("Idempotency-Key", "in_flight"),
        slug="idempotency-key-in-flight",
        retry_after=1.0,
    )


def _write(session: Session, hold: Hold, answer: Answer) -> bool:
    result = session.execute(
        update(IdempotencyRow)
        .where(
            IdempotencyRow.key_hash == hold.key_hash,
            IdempotencyRow.holder == hold.holder,
            IdempotencyRow.status.is_(None),
        )
        .values(status=answer.status, headers=answer.headers, body=answer.body)
    )
    if not isinstance(result, CursorResult):
        raise TypeError("an UPDATE must answer with a cursor")
    return result.rowcount == 1

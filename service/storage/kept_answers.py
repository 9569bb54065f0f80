"""Answers kept for idempotency keys, so that a retried POST is carried out once.

A request with an Idempotency-Key first takes a hold of the key. The holder's answer is kept for a
while and replayed to the same key and body; another body is refused; while a hold lasts, others get
409. Only successes are kept: a refused request changed nothing and may be tried again.

Exactly once, also through kill -9: work that writes to the database calls `keep` inside its own
transaction, so the work and its answer commit together, and a hold that ran out and was taken over
by a retry makes the first holder's `keep`, and with it the work, fail. What does not call `keep`
(a request whose answer is kept only after it) may be carried out again if the process dies between
the two and the client retries after the hold.

No request reads another's answer: a key is looked up, what is too old goes in the sweep
(`forget_expired`), and an erasure finds the answers that name somebody by an index of the names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    CursorResult,
    Engine,
    ForeignKey,
    Index,
    Integer,
    Select,
    String,
    Text,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from service.foundation.errors import Conflict, Invalid, Reason
from service.storage.database import Table, new_id, now, writing

HOLD = timedelta(minutes=2)
KEPT = timedelta(hours=24)
KEPT_SEARCH = timedelta(minutes=10)  # it can be repeated; for as long as a client tries again
_ABANDONED = timedelta(hours=1)  # a hold that ran out is left to a slow request for so long
_PAGE = 500
_SUBJECTS = frozenset({"subject_id", "subject_ids"})
_SEQUENCES = frozenset({"sequence_id", "sequence_ids"})
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")  # the one that SQLite counts up by itself

StillThere = Callable[[Session, Collection[str]], bool]
"""Whether all of these sequences are enrolled, and stay so until the transaction ends."""


class IdempotencyRow(Table):
    """One key: who holds it, or (with a status) the answer that is replayed; until when."""

    __tablename__ = "idempotency"

    number: Mapped[int] = mapped_column(_NUMBER, primary_key=True)
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    holder: Mapped[str] = mapped_column(String(36))
    expires_at: Mapped[datetime]
    status: Mapped[int | None]
    headers: Mapped[dict[str, str]] = mapped_column(JSON)
    body: Mapped[str] = mapped_column(Text)

    __table_args__ = (Index("ix_idempotency_expires", "expires_at"),)


class NamedRow(Table):
    """That an answer names a subject, a sequence or a place: of the name 64 bits of its hash.

    Two names of one hash cost an answer that could have been kept, nothing else.
    """

    __tablename__ = "idempotency_name"

    name_hash: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    answer: Mapped[int] = mapped_column(
        ForeignKey("idempotency.number", ondelete="CASCADE"), primary_key=True
    )

    __table_args__ = (
        Index("ix_idempotency_name_answer", "answer"),
        {"sqlite_with_rowid": False},
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """A response worth keeping; its body is JSON.

    Whom it names it names in `subject_id` and `sequence_id` (or lists of them), and nowhere else.
    """

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

    def __init__(self, engine: Engine, still_there: StillThere) -> None:
        self._engine = engine
        self._still_there = still_there

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
            row = session.scalar(
                select(IdempotencyRow).where(IdempotencyRow.key_hash == key_hash).with_for_update()
            )
            if row is not None and _over(row, at):
                session.delete(row)
                session.flush()
                row = None
            if row is None:
                session.add(
                    IdempotencyRow(
                        key_hash=key_hash,
                        fingerprint=fingerprint,
                        holder=hold.holder,
                        expires_at=at + HOLD,
                        status=None,
                        headers={},
                        body="",
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

    def keep(self, hold: Hold, answer: Answer, lifetime: timedelta = KEPT) -> None:
        """Keep an answer that no transaction has kept; a hold that is gone is left alone.

        So is an answer that names a sequence which was erased meanwhile: the key is free again.
        """
        if not self._is_held(hold):
            return
        with Session(writing(self._engine)) as session, session.begin():
            if self._still_there(session, _named(answer, _SEQUENCES)):
                _write(session, hold, answer, lifetime)
            else:
                _release(session, hold)

    def release(self, hold: Hold) -> None:
        """Let the key go without an answer: the request was refused or failed."""
        with Session(writing(self._engine)) as session, session.begin():
            _release(session, hold)

    def _is_held(self, hold: Hold) -> bool:
        """Asked without the lock that writers wait for; what was kept is not taken back."""
        with Session(self._engine) as session:
            held = select(IdempotencyRow.number).where(*_of(hold))
            return session.scalar(held) is not None


def keep(session: Session, hold: Hold | None, answer: Answer) -> None:
    """Keep the answer in the transaction of the work itself; without a hold there is nothing to do.

    Raises `Conflict` when the hold ran out and the key went to a retry: the work must not commit.
    """
    if hold is not None and not _write(session, hold, answer, KEPT):
        raise Conflict(
            "This request took so long that a retry with its Idempotency-Key took its place.",
            Reason("Idempotency-Key", "taken_over"),
            slug="idempotency-key-taken-over",
        )


def forget_answers_about(session: Session, names: Collection[str]) -> None:
    """Delete kept answers that name one of these subjects or sequences.

    They are erased, by this transaction and before this: who keeps an answer about them meanwhile
    waits for them, or is waited for.
    """
    hashes = [_name_hash(name) for name in names]
    for start in range(0, len(hashes), _PAGE):
        naming = select(NamedRow.answer).where(NamedRow.name_hash.in_(hashes[start:][:_PAGE]))
        _delete(session, naming)


def forget_answers_at(session: Session, location: str) -> None:
    """Delete kept answers that made what was there, which is erased."""
    forget_answers_about(session, [location])


def forget_expired(engine: Engine, at: datetime, most: int) -> int:
    """Delete up to `most` answers whose time is over, and holds of who died; returns how many."""
    over = (
        select(IdempotencyRow.number)
        .where(
            IdempotencyRow.expires_at <= at,
            or_(
                IdempotencyRow.status.is_not(None),
                IdempotencyRow.expires_at <= at - _ABANDONED,
            ),
        )
        .order_by(IdempotencyRow.expires_at)
        .limit(most)
        .with_for_update(skip_locked=True)  # PostgreSQL: another process sweeps, too
    )
    with Session(writing(engine)) as session, session.begin():
        return _delete(session, over)


def _over(row: IdempotencyRow, at: datetime) -> bool:
    """Whether an answer is too old, or a hold ran out: its process died, or `keep` fences it off.

    A hold of a time that nobody gives was given before the clock was set back.
    """
    return row.expires_at <= at or (row.status is None and row.expires_at > at + 2 * HOLD)


def _in_flight() -> Conflict:
    return Conflict(
        "The first request with this Idempotency-Key is still being carried out. "
        "Try again in a moment.",
        Reason("Idempotency-Key", "in_flight"),
        slug="idempotency-key-in-flight",
        retry_after=1.0,
    )


def _of(hold: Hold) -> tuple[ColumnElement[bool], ...]:
    """Where the hold is, as long as it is one."""
    return (
        IdempotencyRow.key_hash == hold.key_hash,
        IdempotencyRow.holder == hold.holder,
        IdempotencyRow.status.is_(None),
    )


def _write(session: Session, hold: Hold, answer: Answer, lifetime: timedelta) -> bool:
    number = session.scalar(
        update(IdempotencyRow)
        .where(*_of(hold))
        .values(
            status=answer.status,
            headers=answer.headers,
            body=answer.body,
            expires_at=now() + lifetime,
        )
        .returning(IdempotencyRow.number)
    )
    if number is None:
        return False
    names = _named(answer, _SUBJECTS | _SEQUENCES)
    if "location" in answer.headers:
        names.add(answer.headers["location"])
    hashes = {_name_hash(name) for name in names}
    if hashes:
        session.execute(
            insert(NamedRow), [{"name_hash": name, "answer": number} for name in hashes]
        )
    return True


def _release(session: Session, hold: Hold) -> None:
    session.execute(delete(IdempotencyRow).where(*_of(hold)))


def _delete(session: Session, numbers: Select[int]) -> int:
    result = session.execute(
        delete(IdempotencyRow).where(IdempotencyRow.number.in_(numbers)),
        execution_options={"synchronize_session": False},
    )
    if not isinstance(result, CursorResult):
        raise TypeError("a DELETE must answer with a cursor")
    return result.rowcount


def _named(answer: Answer, fields: frozenset[str]) -> set[str]:
    return set(_values(json.loads(answer.body), fields))


def _values(content: object, fields: frozenset[str]) -> Iterator[str]:
    """Every text under one of these fields, however deep, alone or in a list."""
    if isinstance(content, dict):
        for field, value in content.items():
            if field in fields:
                yield from (one for one in _listed(value) if isinstance(one, str))
            yield from _values(value, fields)
    elif isinstance(content, list):
        for value in content:
            yield from _values(value, fields)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _name_hash(name: str) -> int:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)

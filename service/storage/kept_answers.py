"""Answers kept for idempotency keys, so that a retried POST is carried out once.

A request with an Idempotency-Key first locks the key. Its answer is kept for a while and replayed
to the same key and body; another body is refused; while the key is locked, other requests get 409.
Only successes are kept: a refused request changed nothing and may be sent again.

Exactly once, also through kill -9: work that writes to the database calls `keep` inside its own
transaction, so the work and its answer commit together. When a lock has run out and a retry has
taken the key over, the first request's `keep` fails, and its work with it. A request whose answer
is kept only after its work may be carried out again if the process dies between the two.

No request reads another's answer: a key is looked up, old answers go in the sweep, and an erasure
finds the answers that name somebody through an index of hashed names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    Row,
    Select,
    String,
    Text,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column

from service.foundation.errors import Conflict, Invalid, Reason
from service.storage.database import Table, in_pieces, new_id, now, writing

LOCK_TIME: Final = timedelta(minutes=2)
ANSWER_LIFETIME: Final = timedelta(hours=24)
SEARCH_LIFETIME: Final = timedelta(minutes=10)  # can be repeated; as long as a client retries
_ABANDONED: Final = timedelta(hours=1)  # a slow request may still use a lock that ran out
_SUBJECTS: Final = frozenset({"subject_id", "subject_ids"})
_SEQUENCES: Final = frozenset({"sequence_id", "sequence_ids"})
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers only an INTEGER by itself

AllEnrolled = Callable[[Session, Collection[str]], bool]
"""Whether all of these sequences are enrolled, and stay so until the transaction ends."""


class IdempotencyRow(Table):
    """One key: which request has it locked, or (with a status) the answer; until when."""

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


class AnswerNameRow(Table):
    """An answer names a subject, a sequence or a location: 64 bits of the name's hash.

    Two names with one hash cost an answer that could have been kept, nothing else.
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

    It names people only in `subject_id` and `sequence_id`, or in lists of them.
    """

    status: int
    headers: dict[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class KeyLock:
    """The right to carry out the request behind a key."""

    key_hash: str
    holder: str


class IdempotencyStore:
    """Locks and answers in the database."""

    def __init__(self, engine: Engine, all_enrolled: AllEnrolled) -> None:
        self._engine = engine
        self._all_enrolled = all_enrolled
        self._left: set[KeyLock] = set()  # what may be locked because the database went away

    def acquire(self, caller: str, key: str, fingerprint: str) -> KeyLock | Answer:
        """Lock the key, or return the answer to replay.

        Raises `Conflict` while another request has the key locked, and `Invalid` when the key was
        used for another request. Unlocks first what could not be unlocked before.
        """
        for left in tuple(self._left):
            self.release(left)
        lock = KeyLock(hashlib.sha256(f"{caller}\0{key}".encode()).hexdigest(), new_id())
        try:
            with writing(self._engine).begin() as connection:
                return _acquire(connection, lock, fingerprint)
        except IntegrityError as error:  # PostgreSQL: two requests insert the key at once
            raise _in_flight() from error
        except SQLAlchemyError:  # which may have been thrown after it was committed
            self._left.add(lock)
            raise

    def keep(self, lock: KeyLock, answer: Answer, lifetime: timedelta = ANSWER_LIFETIME) -> None:
        """Keep an answer that no transaction has kept; does nothing once the lock is lost.

        An answer that names a sequence which was erased meanwhile is not kept: the key is free
        again.
        """
        with Session(self._engine) as session:  # without waiting for other writers
            if session.scalar(select(IdempotencyRow.number).where(*_locked_by(lock))) is None:
                return
        with Session(writing(self._engine)) as session, session.begin():
            if self._all_enrolled(session, _names(answer, _SEQUENCES)):
                _write(session, lock, answer, lifetime)
            else:
                session.execute(delete(IdempotencyRow).where(*_locked_by(lock)))

    def release(self, lock: KeyLock) -> None:
        """Unlock the key without an answer: the request was refused or failed.

        If the database does not take it, the next `acquire` of any key does it.
        """
        self._left.add(lock)
        with Session(writing(self._engine)) as session, session.begin():
            session.execute(delete(IdempotencyRow).where(*_locked_by(lock)))
        self._left.discard(lock)


def keep(session: Session, lock: KeyLock | None, answer: Answer) -> None:
    """Keep the answer in the transaction of the work itself; does nothing without a lock.

    Raises `Conflict` when the lock ran out and the key went to a retry: the work must not commit.
    """
    if lock is not None and not _write(session, lock, answer, ANSWER_LIFETIME):
        raise Conflict(
            "This request took so long that a retry with its Idempotency-Key took its place.",
            Reason("Idempotency-Key", "taken_over"),
            slug="idempotency-key-taken-over",
        )


def delete_answers_about(session: Session, names: Collection[str]) -> None:
    """Delete kept answers that name one of these subjects or sequences, or have this location.

    Call it in the transaction that erases them, after the erasure: a request that keeps an answer
    about them at the same time waits for this transaction, or is waited for.
    """
    for page in in_pieces(map(_name_hash, names)):
        _delete(session, select(AnswerNameRow.answer).where(AnswerNameRow.name_hash.in_(page)))


def delete_expired_answers(engine: Engine, at: datetime, most: int) -> int:
    """Delete up to `most` expired answers and abandoned locks; returns how many."""
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


# Of every POST, so made once and used without the session's bookkeeping.
_OF_KEY = (
    select(*IdempotencyRow.__table__.columns)
    .where(IdempotencyRow.key_hash == bindparam("key_hash"))
    .with_for_update()
)
_LOCK = insert(IdempotencyRow)
_NAME = insert(AnswerNameRow)


def _acquire(connection: Connection, lock: KeyLock, fingerprint: str) -> KeyLock | Answer:
    at = now()
    row = connection.execute(_OF_KEY, {"key_hash": lock.key_hash}).one_or_none()
    if row is not None and _is_over(row, at):
        connection.execute(delete(IdempotencyRow).where(IdempotencyRow.number == row.number))
        row = None
    if row is None:
        locked = {
            "key_hash": lock.key_hash,
            "fingerprint": fingerprint,
            "holder": lock.holder,
            "expires_at": at + LOCK_TIME,
            "status": None,
            "headers": {},
            "body": "",
        }
        connection.execute(_LOCK, locked)
        return lock
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


def _is_over(row: Row[Any], at: datetime) -> bool:
    """Whether an answer has expired, or a lock: its process died, or will fail in `keep`.

    A lock that lasts longer than any was made before the clock was set back.
    """
    return row.expires_at <= at or (row.status is None and row.expires_at > at + 2 * LOCK_TIME)


def _in_flight() -> Conflict:
    return Conflict(
        "The first request with this Idempotency-Key is still being carried out. "
        "Try again in a moment.",
        Reason("Idempotency-Key", "in_flight"),
        slug="idempotency-key-in-flight",
        retry_after=1.0,
    )


def _locked_by(lock: KeyLock) -> tuple[ColumnElement[bool], ...]:
    """Selects the key's row while this lock is on it."""
    return (
        IdempotencyRow.key_hash == lock.key_hash,
        IdempotencyRow.holder == lock.holder,
        IdempotencyRow.status.is_(None),
    )


def _write(session: Session, lock: KeyLock, answer: Answer, lifetime: timedelta) -> bool:
    """Put the answer in the lock's place, with whom it names; False when the lock is lost."""
    connection = session.connection()
    number = connection.scalar(
        update(IdempotencyRow)
        .where(*_locked_by(lock))
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
    names = _names(answer, _SUBJECTS | _SEQUENCES)
    if "location" in answer.headers:
        names.add(answer.headers["location"])
    rows = [{"name_hash": name, "answer": number} for name in {_name_hash(name) for name in names}]
    if rows:
        connection.execute(_NAME, rows)
    return True


def _delete(session: Session, numbers: Select[int]) -> int:
    answers = delete(IdempotencyRow).where(IdempotencyRow.number.in_(numbers))
    return session.connection().execute(answers).rowcount


def _names(answer: Answer, fields: frozenset[str]) -> set[str]:
    """Every text under one of these fields, however deep, alone or in a list.

    Read while the answer is written, from the whole of it: whichever route made it, nobody whom it
    names is missed.
    """
    names: set[str] = set()

    def collect(item: dict[str, Any]) -> dict[str, Any]:
        for field in fields & item.keys():
            value = item[field]
            texts = value if isinstance(value, list) else [value]
            names.update(text for text in texts if isinstance(text, str))
        return item

    json.loads(answer.body, object_hook=collect)
    return names


def _name_hash(name: str) -> int:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)

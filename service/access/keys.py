"""API keys: made once, shown once, stored as hashes.

A key is 32 random bytes, so a plain SHA-256 of it cannot be searched by trial; the slow hashes that
passwords need would only slow every request down. It is looked up at each request, so a key that
was revoked or has expired is useless at once, in every process.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from sqlalchemy import JSON, Engine, Row, String, bindparam, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from service.foundation.errors import NotFound, Reason, Unauthenticated
from service.foundation.rate import Rate
from service.storage.database import Table, new_id, now, writing

_PREFIX = "gid_"
_DAYS = re.compile(r"([1-9][0-9]{0,4})d")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Scope(StrEnum):
    """What a key may do; `admin` may do everything."""

    ENROLL = "enroll"
    IDENTIFY = "identify"
    JOBS = "jobs"
    ADMIN = "admin"


class ApiKeyRow(Table):
    """One key. Revoked and expired keys stay, so that losing the last one opens nothing."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    rate: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret.

    `rate` is as in `service.foundation.rate`; None stands for the deployment's own. A key without
    `expires_at` never expires.
    """

    key_id: str
    name: str
    scopes: frozenset[Scope]
    rate: str | None
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None

    def state(self, at: datetime) -> Literal["active", "expired", "revoked"]:
        """Return the key's state at a moment; at `expires_at` it has expired."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= at else "active"

    def may(self, scope: Scope) -> bool:
        """Return whether this key has the scope."""
        return self.revoked_at is None and (scope in self.scopes or Scope.ADMIN in self.scopes)


InTransaction = Callable[[ApiKey], None]
"""Runs in the transaction that changes a key; an exception undoes the change."""


def _nothing_else(_key: ApiKey) -> None:
    pass


def create_key(
    engine: Engine,
    scopes: Iterable[Scope],
    name: str = "",
    rate: str | None = None,
    in_transaction: InTransaction = _nothing_else,
    *,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; returns it and its token, which is not kept.

    Raises `ValueError` without a scope, or for a rate that cannot be read.
    """
    wanted = sorted({Scope(scope) for scope in scopes})
    if not wanted:
        raise ValueError("a key needs at least one scope")
    if rate is not None:
        Rate.parse(rate)
    token = _PREFIX + secrets.token_urlsafe(32)
    row = ApiKeyRow(
        id=new_id(),
        name=name,
        token_hash=hash_of(token),
        scopes=[str(scope) for scope in wanted],
        rate=rate,
        created_at=now(),
        revoked_at=None,
        expires_at=expires_at,
    )
    with Session(writing(engine), expire_on_commit=False) as session, session.begin():
        session.add(row)
        session.flush()
        in_transaction(_record(row))
    return _record(row), token


def list_keys(engine: Engine) -> list[ApiKey]:
    """Return every key, oldest first, revoked and expired ones included."""
    with Session(engine) as session:
        return [_record(row) for row in session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.id))]


def revoke_key(
    engine: Engine, key_id: str, in_transaction: InTransaction = _nothing_else
) -> ApiKey:
    """Revoke a key; raises `NotFound`."""
    with Session(writing(engine), expire_on_commit=False) as session, session.begin():
        row = session.get(ApiKeyRow, key_id)
        if row is None:
            raise NotFound(f"There is no API key {key_id!r}.")
        row.revoked_at = row.revoked_at or now()
        in_transaction(_record(row))
    return _record(row)


def keys_that_expire(engine: Engine, within: timedelta, at: datetime) -> list[ApiKey]:
    """Return the active keys that expire within a time from a moment on."""
    return [
        key
        for key in list_keys(engine)
        if key.state(at) == "active" and key.state(at + within) == "expired"
    ]


# Read at every request: made once, and read without a session.
_ANY = select(ApiKeyRow.id).limit(1)
_WITH_TOKEN = select(*ApiKeyRow.__table__.columns).where(
    ApiKeyRow.token_hash == bindparam("token_hash")
)


def any_key(engine: Engine) -> bool:
    """Return whether a key was ever made: from then on every request needs one."""
    with engine.connect() as connection:
        return connection.scalar(_ANY) is not None


def find_key(engine: Engine, token: str, at: datetime) -> ApiKey | None:
    """Return the key behind a token, None if it is unknown or revoked.

    Raises `Unauthenticated` if it has expired at this moment. Whoever holds it is told so: it is no
    guess, and a new one is what helps.
    """
    with engine.connect() as connection:
        row = connection.execute(_WITH_TOKEN, {"token_hash": hash_of(token)}).one_or_none()
    if row is None:
        return None
    key = _record(row)
    match key.state(at):
        case "revoked":
            return None
        case "expired":
            raise Unauthenticated(
                "This API key has expired. Ask whoever runs the service for a new one, which "
                "`gaitid keys add` makes.",
                Reason("Authorization", "expired_key"),
            )
    return key


def read_expiry(text: str, at: datetime) -> datetime:
    """Return when a key that is made at `at` expires.

    `90d` means 90 days later, `2027-01-31` the beginning of that day in UTC. Raises `ValueError`
    for anything else, and for a day that has begun.
    """
    if days := _DAYS.fullmatch(text):
        return at + timedelta(days=int(days[1]))
    if not _DATE.fullmatch(text):
        raise ValueError(f"{text!r} is neither a number of days, such as 90d, nor a date")
    day = date.fromisoformat(text)
    expires_at = datetime(day.year, day.month, day.day, tzinfo=UTC)
    if expires_at <= at:
        raise ValueError(f"{text} has begun already, UTC: the key would be expired")
    return expires_at


def hash_of(token: str) -> str:
    """Return the hash that is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _record(row: ApiKeyRow | Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=row.id,
        name=row.name,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        rate=row.rate,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        expires_at=row.expires_at,
    )

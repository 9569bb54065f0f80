"""Rate limits: token buckets in the memory of one process, or in the database of several.

A bucket holds as many requests as the rate names and fills up evenly, so a client may send them all
at once and then goes on at the rate. With SQLite each process has its own buckets, because shared
ones would cost every request a turn at the write lock. With PostgreSQL all processes share them, by
the database's clock: a statement for each request that has a limit.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from time import monotonic
from typing import Any, Protocol

from sqlalchemy import Engine, text
from sqlalchemy.engine import Row

from service.foundation.rate import Rate

_MOST_BUCKETS = 10_000
_NETWORK_OF_ONE = 64  # bits: an IPv6 host has this many addresses to choose from
_TIDIED_AFTER = 1000  # requests that a process has counted


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a bucket after a request.

    Attributes:
        remaining: requests that are allowed now.
        full_in: seconds until the bucket is full.
        retry_in: seconds until the next request is allowed; None if this one is.
    """

    rate: Rate
    remaining: int
    full_in: float
    retry_in: float | None

    def headers(self) -> dict[str, str]:
        """Return the `RateLimit-*` headers of the answer."""
        return {
            "RateLimit-Limit": str(self.rate.requests),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(math.ceil(self.full_in)),
        }


class RateLimiter(Protocol):
    """Buckets by name."""

    async def take(self, who: str, rate: Rate) -> Standing:
        """Take one request out of a bucket, if there is one."""
        ...

    async def peek(self, who: str, rate: Rate) -> Standing:
        """Return the state of a bucket, without taking a request out."""
        ...


def rate_limiter(engine: Engine, limits: str) -> RateLimiter:
    """Return the buckets of one kind of limit, for all who serve from this database."""
    return LocalRates() if engine.dialect.name == "sqlite" else SharedRates(engine, limits)


class LocalRates:
    """Buckets in memory, for one thread. Those not used for longest are dropped first."""

    def __init__(
        self, *, clock: Callable[[], float] = monotonic, most: int = _MOST_BUCKETS
    ) -> None:
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, as of when

    async def take(self, who: str, rate: Rate) -> Standing:
        """Take one request out of a bucket, if there is one."""
        held = self._held(who, rate)
        if held < 1:
            return _standing(rate, held, allowed=False)
        self._buckets[who] = (held - 1, self._clock())
        self._buckets.move_to_end(who)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return _standing(rate, held - 1, allowed=True)

    async def peek(self, who: str, rate: Rate) -> Standing:
        """Return the state of a bucket, without taking a request out."""
        held = self._held(who, rate)
        return _standing(rate, held, allowed=held >= 1)

    def _held(self, who: str, rate: Rate) -> float:
        now = self._clock()
        tokens, at = self._buckets.get(who, (float(rate.requests), now))
        return min(float(rate.requests), tokens + (now - at) * rate.requests / rate.seconds)


# What a bucket holds now; a clock that was set back adds nothing.
_HELD = "least(:requests, b.tokens + greatest(:now - b.at, 0) * :a_second)"
_NOW = "extract(epoch FROM clock_timestamp())::double precision"
_TAKE = f"""
    INSERT INTO rate_bucket AS b (who, tokens, at, full_at, allowed)
    VALUES (:who, :requests - 1, :now, :now + 1 / :a_second, true)
    ON CONFLICT (who) DO UPDATE SET
        allowed = {_HELD} >= 1,
        tokens = {_HELD} - CASE WHEN {_HELD} >= 1 THEN 1 ELSE 0 END,
        at = :now,
        full_at = :now + :requests / :a_second
    RETURNING tokens, allowed
"""  # noqa: S608 - no value is in it
_PEEK = f"SELECT {_HELD} AS tokens FROM rate_bucket AS b WHERE who = :who"  # noqa: S608
_TIDY = f"DELETE FROM rate_bucket WHERE full_at <= {_NOW}"  # noqa: S608


class SharedRates:
    """Buckets in PostgreSQL. Those that are full are removed now and then."""

    def __init__(
        self, engine: Engine, limits: str, *, clock: Callable[[], float] | None = None
    ) -> None:
        """`limits` is what they limit; `clock` is the database's own if none is given."""
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._limits = limits
        self._clock = clock
        self._taken = 0

    async def take(self, who: str, rate: Rate) -> Standing:
        """Take one request out of a bucket, if there is one."""
        self._taken += 1
        if self._taken % _TIDIED_AFTER == 0:
            await asyncio.to_thread(self._execute, _TIDY)
        (row,) = await asyncio.to_thread(self._execute, _TAKE, self._named(who, rate))
        return _standing(rate, row.tokens, allowed=row.allowed)

    async def peek(self, who: str, rate: Rate) -> Standing:
        """Return the state of a bucket, without taking a request out."""
        rows = await asyncio.to_thread(self._execute, _PEEK, self._named(who, rate))
        held = rows[0].tokens if rows else float(rate.requests)
        return _standing(rate, held, allowed=held >= 1)

    def _execute(
        self, statement: str, given: Mapping[str, Any] | None = None
    ) -> Sequence[Row[Any]]:
        now = _NOW if self._clock is None else f"({self._clock()!r})::double precision"
        with self._engine.connect() as connection:
            result = connection.execute(text(statement.replace(":now", now)), given)
            return result.all() if result.returns_rows else ()

    def _named(self, who: str, rate: Rate) -> dict[str, Any]:
        """What statements are given; the row is named by a hash, so no address is kept."""
        return {
            "who": hashlib.sha256(f"{self._limits} {who}".encode()).hexdigest(),
            "requests": float(rate.requests),
            "a_second": rate.requests / rate.seconds,
        }


def _standing(rate: Rate, tokens: float, *, allowed: bool) -> Standing:
    a_second = rate.requests / rate.seconds
    return Standing(
        rate,
        remaining=int(tokens),
        full_in=(rate.requests - tokens) / a_second,
        retry_in=None if allowed else (1 - tokens) / a_second,
    )


def network_of(address: str) -> str:
    """Return what an address counts as: itself, or the IPv6 network (/64) that one host has."""
    try:
        known = ip_address(address)
    except ValueError:
        return address
    if isinstance(known, IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ip_network((known, _NETWORK_OF_ONE), strict=False))
    return str(known)

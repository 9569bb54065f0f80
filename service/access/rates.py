"""Rate limits: token buckets in the memory of one process.

A bucket holds as many requests as the rate names and fills up evenly, so a client may send them all
at once and then goes on at the rate. Each process has its own buckets, because shared ones would
cost a write to the database for every request.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from time import monotonic

from service.foundation.rate import Rate

_MOST_BUCKETS = 10_000
_NETWORK_OF_ONE = 64  # bits: an IPv6 host has this many addresses to choose from


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


class RateLimiter:
    """Buckets by name, for one thread. Those that were not used for longest are dropped first."""

    def __init__(
        self, *, clock: Callable[[], float] = monotonic, most: int = _MOST_BUCKETS
    ) -> None:
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, as of when

    def take(self, who: str, rate: Rate) -> Standing:
        """Take one request out of a bucket, if there is one."""
        standing, tokens = self._stands(who, rate)
        if standing.retry_in is not None:
            return standing
        left = tokens - 1
        self._buckets[who] = (left, self._clock())
        self._buckets.move_to_end(who)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        full_in = (rate.requests - left) * rate.seconds / rate.requests
        return Standing(rate, int(left), full_in, None)

    def peek(self, who: str, rate: Rate) -> Standing:
        """Return the state of a bucket, without taking a request out."""
        return self._stands(who, rate)[0]

    def _stands(self, who: str, rate: Rate) -> tuple[Standing, float]:
        now = self._clock()
        tokens, at = self._buckets.get(who, (float(rate.requests), now))
        a_second = rate.requests / rate.seconds
        tokens = min(float(rate.requests), tokens + (now - at) * a_second)
        retry_in = None if tokens >= 1 else (1 - tokens) / a_second
        full_in = (rate.requests - tokens) / a_second
        return Standing(rate, int(tokens), full_in, retry_in), tokens


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

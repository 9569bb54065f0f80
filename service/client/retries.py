"""When a call that failed is tried again, and how long after."""

from __future__ import annotations

import random
from dataclasses import dataclass

from service.client.failures import (
    ClientError,
    RateLimited,
    Refused,
    ServiceUnreachable,
    Unavailable,
)

_IN_FLIGHT = "idempotency-key-in-flight"


@dataclass(frozen=True, slots=True)
class Retries:
    """How patient a client is.

    Waits double from the first to the longest, and each is cut at random to between half and all
    of it, so that clients that failed together do not come back together. Where the service says
    how long to wait (Retry-After), that is added; longer than the longest is not waited at all.

    Attributes:
        attempts: how often a call is made at most.
        first_wait_s: seconds after the first failure.
        longest_wait_s: seconds after many.
    """

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0

    def pause(self, error: ClientError, failures: int, *, repeatable: bool) -> float:
        """Seconds to wait before the next attempt, or raises `error` when there is to be none.

        Args:
            error: what the last attempt ended with.
            failures: how many attempts have failed.
            repeatable: whether carrying the call out twice is the same as once. What is not is
                tried again only where it certainly was not carried out.
        """
        asked = error.retry_after or 0.0 if isinstance(error, Refused) else 0.0
        if (
            failures >= self.attempts
            or asked > self.longest_wait_s
            or not _passes(error, repeatable=repeatable)
        ):
            raise error
        wait = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 16))
        return asked + wait * random.uniform(0.5, 1.0)  # noqa: S311 - spreads, hides nothing


def _passes(error: ClientError, *, repeatable: bool) -> bool:
    """Whether the same call may succeed later."""
    match error:
        case ServiceUnreachable():
            return repeatable or not error.sent
        case RateLimited() | Unavailable():
            return True
        case Refused():  # our own request, whose connection broke, is still being carried out
            return error.slug == _IN_FLIGHT
        case _:
            return False

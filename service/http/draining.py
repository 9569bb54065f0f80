"""How a service leaves: first it is not ready any more, then it takes nothing new, then it ends.

A proxy needs a moment to see that a service is not ready; until then it sends requests, which are
answered. Every answer from then on closes its connection, so that the next request of a client goes
elsewhere. What was begun is finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.foundation.errors import Unavailable

_ALWAYS = frozenset({"/healthz", "/metrics"})
_RETRY_S = 2.0  # by then a proxy has another one


class Draining:
    """Whether the service leaves, and what it still answers; owned by the event loop."""

    def __init__(self) -> None:
        self.leaving = False
        """Set by a signal's handler."""
        self.refusing = False
        self.answering = 0

    def require_open(self, path: str) -> None:
        """Raise `Unavailable` for a request that the service does not begin with any more."""
        if (self.refusing and path not in _ALWAYS) or (self.leaving and path == "/readyz"):
            raise Unavailable(
                "The service is stopping. Send the request again, to another one or when it is "
                "back.",
                slug="stopping",
                retry_after=_RETRY_S,
            )

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Count a request as one that is being answered until the block ends."""
        self.answering += 1
        try:
            yield
        finally:
            self.answering -= 1

"""Whether the service may be asked yet, and what it waits for."""

from __future__ import annotations

from service.foundation.errors import Unavailable
from service.foundation.metrics import Metrics


class Readiness:
    """Not ready until `done`; says meanwhile what is being loaded."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._waiting_for: str | None = "The service is starting."

    def says(self, text: str) -> None:
        """Say what is being waited for."""
        self._waiting_for = text

    def done(self) -> None:
        """From now on the service is ready."""
        self._waiting_for = None
        self._metrics.ready.set(1)

    def require(self) -> None:
        """Raise `Unavailable`, saying what is being waited for, unless the service is ready."""
        if self._waiting_for is not None:
            raise Unavailable(self._waiting_for, slug="not-ready", retry_after=2.0)

"""A job's events over as many connections as it takes: what both clients do with a stream."""

from __future__ import annotations

import httpx
from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from service.client.answers import JobEvent
from service.client.call import Events, at
from service.client.failures import ClientError, ServiceUnreachable, UnexpectedAnswer
from service.client.retries import Retries


class History:
    """Where a stream of events stands."""

    def __init__(self, events: Events, retries: Retries) -> None:
        self.path = at("/jobs/{}/events", events.job_id)
        self.complete = False
        self._after = events.after
        self._retries = retries
        self._failures = 0

    @property
    def headers(self) -> dict[str, str]:
        """What asks for the events that are missing."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._after:
            headers["Last-Event-ID"] = str(self._after)
        return headers

    def begin(self, response: httpx.Response) -> None:
        """Note the head of an answer that is no error: 204 says that there is nothing more."""
        if response.status_code == httpx.codes.NO_CONTENT:
            self.complete = True
        elif not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            raise UnexpectedAnswer(f"{response.url} sends no events")

    def take(self, sent: ServerSentEvent) -> JobEvent:
        """Note an event that arrived."""
        try:
            event = JobEvent(sequence=int(sent.id), kind=sent.event, data=sent.json())
        except (ValueError, ValidationError) as error:
            raise UnexpectedAnswer(f"{self.path} sends an event that is none of a job's") from error
        self._after = event.sequence
        self._failures = 0
        self.complete = event.last
        return event

    def pause(self, error: ClientError | None) -> float:
        """Seconds until the next connection, after one that broke or (None) just ended.

        A service that is stopped ends its streams in good order, with the job still going.
        """
        self._failures += 1
        broken = error or ServiceUnreachable(f"{self.path} ended before the job", sent=True)
        return self._retries.pause(broken, self._failures, repeatable=True)

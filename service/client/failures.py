"""Errors of the client.

ClientError
├── ServiceUnreachable     nothing answers at the URL, or the connection broke
├── UnexpectedAnswer       something answers that is not GaitID, or another version of it
├── UnusableName           nothing is asked: no URL can carry such a name
└── Refused                the service answered with a problem: status, slug, detail, errors
    ├── BadRequest         400  the request cannot be read
    ├── Unauthenticated    401  no key, or an unknown one
    ├── Forbidden          403  the key lacks a scope
    ├── NotFound           404
    ├── Conflict           409  the request contradicts what is there
    ├── TooLarge           413  over a limit
    ├── UnsupportedMedia   415  not a sequence of silhouettes
    ├── Invalid            422  a field or a sequence that is not accepted
    ├── RateLimited        429
    ├── Unavailable        503  overloaded or not ready
    └── StorageFull        507
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from service.client.answers import EnrolmentConflict

_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


class ClientError(Exception):
    """Base of all errors that a call raises."""


class ServiceUnreachable(ClientError):
    """Nothing answers at the URL, or the connection broke.

    Attributes:
        sent: whether the request may have reached the service, and been carried out.
    """

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class UnexpectedAnswer(ClientError):
    """Something answers at the URL that is not GaitID, or another version of it."""


class UnusableName(ClientError, ValueError):
    """A name that no URL can carry: empty, `.` or `..`, which would lead to another address."""


class Fault(BaseModel):
    """One thing that is wrong with a request: where, and why."""

    model_config = ConfigDict(frozen=True)

    where: str
    reason: str


class Problem(BaseModel):
    """RFC 9457 problem details; `conflicts` says why an enrolment was refused."""

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str = ""
    status: int
    detail: str = ""
    errors: list[Fault] = []
    conflicts: list[EnrolmentConflict] = []


class Refused(ClientError):
    """The service refused a request.

    Attributes:
        problem: the whole problem document.
        status: the HTTP status.
        slug: the kind of problem in a word, such as `subject-not-found`.
        detail: what is wrong and what to do.
        errors: each fault of the request.
        retry_after: seconds that the service asks to wait, or None.
        request_id: the request's id in the service's log, or None.
    """

    def __init__(
        self, problem: Problem, *, retry_after: float | None = None, request_id: str | None = None
    ) -> None:
        lines = [problem.detail or problem.title or f"status {problem.status}"]
        lines += [f"  {fault.where}: {fault.reason}" for fault in problem.errors]
        super().__init__("\n".join(lines))
        self.problem = problem
        self.status = problem.status
        self.slug = problem.type.rpartition("/")[2]
        self.detail = problem.detail
        self.errors = problem.errors
        self.retry_after = retry_after
        self.request_id = request_id


class BadRequest(Refused):
    """400: the request cannot be read."""


class Unauthenticated(Refused):
    """401: no key, or an unknown one."""


class Forbidden(Refused):
    """403: the key lacks a scope."""


class NotFound(Refused):
    """404: it does not exist."""


class Conflict(Refused):
    """409: the request contradicts what is there."""


class TooLarge(Refused):
    """413: over a limit."""


class UnsupportedMedia(Refused):
    """415: not a sequence of silhouettes."""


class Invalid(Refused):
    """422: a field or a sequence that is not accepted."""


class RateLimited(Refused):
    """429: too many requests."""


class Unavailable(Refused):
    """503: overloaded or not ready."""


class StorageFull(Refused):
    """507: the service cannot keep anything more."""


_KINDS: dict[int, type[Refused]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMedia,
    422: Invalid,
    429: RateLimited,
    503: Unavailable,
    507: StorageFull,
}


def raise_for_problem(response: httpx.Response) -> None:
    """Raise `Refused` for an error status; a proxy's answer need not be a problem document."""
    if response.is_success:
        return
    if not response.is_error:
        raise UnexpectedAnswer(f"{response.url} answers {response.status_code}, not a GaitID")
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        detail = f"{response.status_code} {response.reason_phrase}".strip()
        problem = Problem(status=response.status_code, detail=detail)
    raise _KINDS.get(response.status_code, Refused)(
        problem,
        retry_after=_seconds(response.headers.get("Retry-After")),
        request_id=response.headers.get("X-Request-ID"),
    )


@contextmanager
def unreachable_at(url: httpx.URL) -> Iterator[None]:
    """Turn failures of the connection to `url` into `ServiceUnreachable`."""
    try:
        yield
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        sent = not isinstance(error, _NEVER_SENT)
        raise ServiceUnreachable(f"{url}: {reason}", sent=sent) from error


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds, whichever of its two forms it has (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())

"""The service's error tree; no web framework here, so use cases may raise it.

ServiceError
├── Malformed             400  the request cannot be read
├── Unauthenticated       401  no key, or an unknown one
├── Forbidden             403  the key lacks a scope
├── NotFound              404  no such gallery, subject, sequence, job, model
├── Conflict              409  the request contradicts what is there
├── TooLarge              413  over a limit
├── UnsupportedMedia      415  not a sequence of silhouettes
├── Invalid               422  a field or a sequence that cannot be accepted
├── RateLimited           429  too many requests
├── Unavailable           503  overloaded or not ready; try again later
└── StorageFull           507  nothing more can be kept until space is freed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is wrong: where (field, file or frame) and why (a code or a sentence)."""

    where: str
    reason: str


class CutOff(Exception):
    """An answer that was begun cannot be finished; the text says why. The connection is cut."""


class ServiceError(Exception):
    """Base of all errors that a client may cause or must know of."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(
        self,
        detail: str,
        *reasons: Reason,
        slug: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Say what to do in `detail`; a narrower `slug` may replace the class's own."""
        super().__init__(detail)
        self.detail = detail
        self.reasons = reasons
        self.problem_slug = slug or type(self).slug
        self.retry_after = retry_after

    def members(self) -> Mapping[str, Any]:
        """Return members of the problem document beside the standard ones, ready for JSON."""
        return {}


class Malformed(ServiceError):
    """The request cannot be read."""

    status, slug, title = 400, "malformed-request", "The request cannot be read"


class Unauthenticated(ServiceError):
    """No key was sent, or one that is not known."""

    status, slug, title = 401, "key-required", "A valid API key is required"


class Forbidden(ServiceError):
    """The key lacks the scope this call needs, or the caller may not call at all."""

    status, slug, title = 403, "scope-missing", "Not allowed"


class NotFound(ServiceError):
    """What was asked for does not exist."""

    status, slug, title = 404, "not-found", "Not found"


class Conflict(ServiceError):
    """The request contradicts what is already there."""

    status, slug, title = 409, "conflict", "Conflict"


class TooLarge(ServiceError):
    """Over a limit."""

    status, slug, title = 413, "too-large", "Over a limit"


class UnsupportedMedia(ServiceError):
    """The upload is not a sequence of silhouettes in a format we read."""

    status, slug, title = 415, "not-a-sequence", "Not a sequence of silhouettes"


class UnsupportedCoding(UnsupportedMedia):
    """The body is compressed or otherwise encoded as a whole."""

    slug, title = "content-encoding", "The body's encoding is not read"


class Invalid(ServiceError):
    """A field or a sequence cannot be accepted."""

    status, slug, title = 422, "invalid", "The request cannot be accepted"


class RateLimited(ServiceError):
    """Too many requests with this key."""

    status, slug, title = 429, "rate-limited", "Too many requests"


class Unavailable(ServiceError):
    """Overloaded or not ready yet."""

    status, slug, title = 503, "unavailable", "Not available right now"

    def __init__(
        self, detail: str, *reasons: Reason, retry_after: float, slug: str | None = None
    ) -> None:
        """Say what to do in `detail`; `retry_after` is in seconds."""
        super().__init__(detail, *reasons, slug=slug, retry_after=retry_after)


class StorageFull(ServiceError):
    """There is no space left to write to; what is stored can still be read."""

    status, slug, title = 507, "storage-full", "No space left"

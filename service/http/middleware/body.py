"""Limits on a request's body while it arrives, and a check that it is whole."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from time import perf_counter

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.foundation.errors import Malformed, Reason, TooLarge, UnsupportedCoding
from service.foundation.settings import Settings
from service.http.middleware.access import caller_of
from service.http.middleware.boundaries import Boundaries
from service.http.upload_slots import Upload, UploadSlots

_IMPORT = re.compile(r"/galleries/[^/]+/import")
_FOOTAGE = ("POST", "/jobs/footage")
_SLOWEST = 8192  # bytes a second that a body must come with, on the whole
_LONGEST_BOUNDARY = 200  # RFC 2046 allows 70 characters
_TOO_SLOW = "The body stopped arriving, or came too slowly while others waited. Send it again."


class BodyCutOff(HTTPException):
    """A body that broke a rule half-way. The framework passes on an HTTPException only."""


class BodyGuard:
    """Refuses bodies over the limit, too many uploads at once, and truncated multipart bodies.

    The framework's parser drops a part that is not closed: of two files, it would leave out a
    truncated second one, and the first would be enrolled alone.
    """

    def __init__(self, app: ASGIApp, settings: Settings, slots: UploadSlots) -> None:
        self._app = app
        self._settings = settings
        self._slots = slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        boundary = multipart_boundary(headers.get("content-type", ""))
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UnsupportedCoding(
                "Compressed request bodies are not read. Send the body as it is, without "
                "Content-Encoding; archives may be compressed.",
                Reason("Content-Encoding", "unsupported"),
            )
        limit, patience = self._limit(scope, boundary), self._settings.max_upload_idle_seconds
        announced = headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
            raise TooLarge(_over(limit), slug="request-too-large")
        if boundary is None:
            await self._app(scope, _Arriving(receive, limit, patience), send)
            return
        upload = self._slots.take(caller_of(scope))
        arriving = _Arriving(receive, limit, patience, upload, Boundaries(boundary))
        try:
            await self._app(scope, arriving, send)
        finally:
            self._slots.give_back(upload)

    def _limit(self, scope: Scope, boundary: bytes | None) -> int:
        """Return how many bytes the body of this request may have."""
        if scope["method"] == "PUT" and _IMPORT.fullmatch(scope["path"]):
            return self._settings.max_import_bytes
        if boundary is not None and (scope["method"], scope["path"]) == _FOOTAGE:
            return self._settings.max_footage_bytes
        return (
            self._settings.max_json_bytes if boundary is None else self._settings.max_request_bytes
        )


@dataclass(slots=True)
class _Arriving:
    """A request's body as it arrives; raises `BodyCutOff` if it breaks a rule.

    A body must arrive at a minimum rate: otherwise a few clients that send a byte now and then keep
    all others from uploading. Once it is complete, receiving waits for the client to disconnect.
    """

    receive: Receive
    limit: int  # bytes
    max_idle_seconds: float
    upload: Upload | None = None
    boundaries: Boundaries | None = None
    _total: int = field(default=0, init=False)
    _waited: float = field(default=0.0, init=False)
    _complete: bool = field(default=False, init=False)

    async def __call__(self) -> Message:
        """Return the next message of the request."""
        message = await self._next()
        if message["type"] != "http.request":
            return message
        body = message.get("body", b"")
        self._total += len(body)
        self._complete = not message.get("more_body", False)
        if self.upload is not None:
            self.upload.arrived = self._total
            self.upload.arriving = not self._complete
        if self._total > self.limit:
            raise BodyCutOff(413, _over(self.limit))
        if self.boundaries is not None:
            if not self.boundaries.follow(body):
                raise BodyCutOff(
                    400,
                    "The multipart body has its boundary inside of a part, or something behind it. "
                    "Choose another boundary.",
                )
            if self._complete and self._total and not self.boundaries.closed:
                raise BodyCutOff(
                    400, "The multipart body ends before its closing boundary. Send it whole."
                )
        return message

    async def _next(self) -> Message:
        if self._complete:
            return await self.receive()
        patience = min(0.0, self._total / _SLOWEST - self._waited) + self.max_idle_seconds
        began = perf_counter()
        try:
            async with asyncio.timeout(patience) as waiting:
                if self.upload is not None:
                    if self.upload.cut:
                        raise TimeoutError
                    self.upload.waiting = waiting
                message = await self.receive()
        except TimeoutError as error:
            raise BodyCutOff(408, _TOO_SLOW) from error
        finally:
            if self.upload is not None:
                self.upload.waiting = None
        self._waited += perf_counter() - began
        return message


def multipart_boundary(content_type: str) -> bytes | None:
    """Return the boundary of a multipart/form-data body; None for other bodies.

    Raises `Malformed` for a boundary that no client would choose.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return None
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
        raise Malformed("The multipart body has no usable boundary in its Content-Type.")
    return boundary


def _over(limit: int) -> str:
    return f"The request is over the limit of {limit:,} bytes. Send less at a time."

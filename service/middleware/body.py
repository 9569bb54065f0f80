"""Limits on a request's body, enforced while it streams in, and a check that it is whole."""

from __future__ import annotations

import asyncio
import re
from time import perf_counter

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Malformed, Reason, TooLarge, Unavailable, UnsupportedCoding

_IMPORT = re.compile(r"/galleries/[^/]+/import")
_SLOWEST = 8192  # bytes a second that a body must come with, on the whole
_LONGEST_BOUNDARY = 200  # RFC 2046 allows 70 characters


class BodyCutOff(HTTPException):
    """A body that broke a rule half-way; the framework hands an HTTPException through."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)


class BodyGuard:
    """Refuses bodies over the limit, too many uploads at once, and multipart bodies cut off.

    The parser behind it drops a part that is not closed, so of two files a cut-off second one would
    be left out in silence and the first enrolled alone.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int,
        max_json_bytes: int,
        max_import_bytes: int,
        max_uploads: int,
        max_idle_seconds: float,
    ) -> None:
        self._app = app
        self._max_uploads = max_uploads
        self._max_idle_seconds = max_idle_seconds
        self._uploads = 0
        self._max_bytes = max_bytes
        self._max_json_bytes = max_json_bytes
        self._max_import_bytes = max_import_bytes

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
        if scope["method"] == "PUT" and _IMPORT.fullmatch(scope["path"]):
            limit = self._max_import_bytes
        else:
            limit = self._max_json_bytes if boundary is None else self._max_bytes
        announced = headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
            raise TooLarge(_over(limit), slug="request-too-large")
        closing = None if boundary is None else b"--" + boundary + b"--"
        total = 0
        tail = b""
        complete = False
        waited = 0.0

        async def receive_guarded() -> Message:
            nonlocal total, tail, complete, waited
            # Without a pace a few clients that send a byte now and then keep all others from
            # uploading. Once the body is complete, receiving is waiting for the client to leave.
            patience = min(0.0, total / _SLOWEST - waited) + self._max_idle_seconds
            began = perf_counter()
            try:
                async with asyncio.timeout(None if complete else patience):
                    message = await receive()
            except TimeoutError as error:
                raise BodyCutOff(
                    408, "The body stopped arriving, or came too slowly. Send it again."
                ) from error
            waited += perf_counter() - began
            if message["type"] != "http.request":
                return message
            body = message.get("body", b"")
            total += len(body)
            complete = not message.get("more_body", False)
            if total > limit:
                raise BodyCutOff(413, _over(limit))
            if closing is not None:
                tail = (tail + body)[-(len(closing) + 64) :]
                if complete and total and closing not in tail:
                    raise BodyCutOff(
                        400, "The multipart body ends before its closing boundary. Send it whole."
                    )
            return message

        if closing is None:
            await self._app(scope, receive_guarded, send)
            return
        if self._uploads >= self._max_uploads:
            raise Unavailable(
                "Too many uploads at once. Try again in a moment.",
                slug="overloaded",
                retry_after=1.0,
            )
        self._uploads += 1
        try:
            await self._app(scope, receive_guarded, send)
        finally:
            self._uploads -= 1


def multipart_boundary(content_type: str) -> bytes | None:
    """The boundary of a multipart/form-data body; None for other bodies.

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

"""Idempotency-Key on every POST: the same request with the same key is carried out once."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import IO

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.foundation.errors import Invalid, Reason
from service.gallery.listing import all_enrolled
from service.http.middleware.access import CALLER
from service.http.middleware.body import multipart_boundary
from service.storage.kept_answers import (
    ANSWER_LIFETIME,
    SEARCH_LIFETIME,
    Answer,
    IdempotencyStore,
    KeyLock,
)
from service.storage.writers import Writers

KEPT = "gaitid.idempotency_kept"  # in the scope: the answer's own transaction keeps it
KEY_LOCK = "gaitid.idempotency_lock"  # in the scope: what `service.storage.kept_answers.keep` takes
_IN_MEMORY = 2**20
_CHUNK = 2**18
_LONGEST_ANSWER = 2**20
_log = logging.getLogger(__name__)
_SEARCHES = frozenset({"/identify", "/verify"})  # they change nothing
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class BodyHash:
    """SHA-256 of a body that arrives in pieces, without the boundary of a multipart body.

    A client that sends its form again gets a new boundary from its library; it is the same request.
    """

    def __init__(self, boundary: bytes | None) -> None:
        self._hash = hashlib.sha256()
        # With its line break, as the layer outside of this one counts it: what only resembles a
        # boundary is not cut at, however often it is there.
        self._boundary = None if boundary is None else b"\r\n--" + boundary
        self._rest = b"" if boundary is None else b"\r\n"  # the first one may begin the body

    def update(self, piece: bytes) -> None:
        """Take in the next piece."""
        if self._boundary is None:
            self._hash.update(piece)
            return
        *before, rest = (self._rest + piece).split(self._boundary)
        for part in before:
            self._hash.update(part + b"\0boundary\0")
        undecided = min(len(rest), len(self._boundary) - 1)  # may be the start of a boundary
        self._hash.update(rest[: len(rest) - undecided])
        self._rest = rest[len(rest) - undecided :]

    def hexdigest(self) -> str:
        """Return the digest of all pieces."""
        final = self._hash.copy()
        final.update(self._rest)
        return final.hexdigest()


class Idempotency:
    """Carries out a POST with an Idempotency-Key once, and replays the answer."""

    def __init__(self, app: ASGIApp, engine: Engine, writers: Writers) -> None:
        self._app = app
        self._writers = writers
        self._store = IdempotencyStore(engine, all_enrolled)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raises `Conflict` or `Invalid` for what the key forbids."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        key = headers.get("idempotency-key")
        if key is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if not _KEY.fullmatch(key):
            raise Invalid(
                "An Idempotency-Key is 1 to 255 printable ASCII characters, such as a UUID.",
                Reason("Idempotency-Key", "malformed"),
                slug="idempotency-key-malformed",
            )
        with SpooledTemporaryFile(max_size=_IN_MEMORY) as body:
            digest = BodyHash(multipart_boundary(headers.get("content-type", "")))
            await _read(receive, body, digest)
            request = (scope["method"], scope["path"], scope["query_string"].decode("latin-1"))
            fingerprint = hashlib.sha256(
                "\0".join((*request, digest.hexdigest())).encode()
            ).hexdigest()
            caller = scope.get(CALLER)
            taken = await self._writers.run(
                self._store.acquire, "" if caller is None else caller.key_id, key, fingerprint
            )
            if isinstance(taken, Answer):
                await _replay(taken)(scope, receive, send)
                return
            await self._carry_out(taken, scope, _again(body, receive), send)

    async def _carry_out(self, lock: KeyLock, scope: Scope, receive: Receive, send: Send) -> None:
        scope[KEY_LOCK] = lock
        status = 0
        headers: dict[str, str] = {}
        body = bytearray()
        lifetime = SEARCH_LIFETIME if scope["path"] in _SEARCHES else ANSWER_LIFETIME
        settled = False

        async def send_and_keep(message: Message) -> None:
            nonlocal status, headers, settled
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = _kept_headers(message)
            elif len(body) <= _LONGEST_ANSWER:
                body.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                # Before the client sees the end, so that its next request finds the answer, or the
                # key free again for a corrected one.
                if 200 <= status < 300 and scope.get(KEPT):
                    settled = True
                elif 200 <= status < 300 and _can_be_kept(headers, body):
                    answer = Answer(status, headers, body.decode())
                    await self._writers.run(self._store.keep, lock, answer, lifetime)
                    settled = True
                else:
                    with suppress(SQLAlchemyError):  # then once more, when the client has it
                        await self._writers.run(self._store.release, lock)
                        settled = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_keep)
        finally:
            if not settled:
                await asyncio.shield(self._release(lock))

    async def _release(self, lock: KeyLock) -> None:
        """Unlock, whatever else failed: that is what the client is told, or its answer is sent."""
        try:
            await self._writers.run(self._store.release, lock)
        except SQLAlchemyError as error:
            _log.warning("an Idempotency-Key stays locked until its lock runs out: %s", error)


async def _read(receive: Receive, body: IO[bytes], digest: BodyHash) -> None:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        digest.update(piece)
        body.write(piece)
        more = message.get("more_body", False)
    body.seek(0)


def _again(body: IO[bytes], receive: Receive) -> Receive:
    """Replay the body, then pass on what the connection brings."""
    finished = False

    async def receive_again() -> Message:
        nonlocal finished
        if finished:
            return await receive()
        piece = body.read(_CHUNK)
        finished = len(piece) < _CHUNK
        return {"type": "http.request", "body": piece, "more_body": not finished}

    return receive_again


def _kept_headers(message: Message) -> dict[str, str]:
    kept = (b"content-type", b"location")
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in message["headers"]
        if name.lower() in kept
    }


def _can_be_kept(headers: dict[str, str], body: bytearray) -> bool:
    """Return whether it is JSON and short enough. Other answers may name anybody."""
    return headers.get("content-type") == "application/json" and len(body) <= _LONGEST_ANSWER


def _replay(answer: Answer) -> Response:
    return Response(
        answer.body, answer.status, headers={**answer.headers, "Idempotency-Replayed": "true"}
    )

"""HTTP/1.1 as uvicorn parses it, with bounds on a request's head.

uvicorn waits for a request line and headers for ever and keeps as many of them as are sent,
answers what it cannot parse as plain text, and closes on a client that is still sending, to which
its answer is lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.problems import problem

_LONGEST_HEAD = 64 * 2**10  # bytes, give or take one read from the socket
_HEAD_SECONDS = 20.0
_LINGER_SECONDS = 30.0


class BoundedHttp(HttpToolsProtocol):
    """Closes connections whose request line and headers are too long, or too long in coming.

    A refusal that ends the connection is sent before the body is there; what still comes is read
    and dropped for a while, because a connection that is closed on it is reset, and the answer in
    it with it.
    """

    _head_bytes: int | None = 0  # of the head that is being received; None while none is
    _head_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None  # while nothing but the body's end is awaited

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first head."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._head_arrived()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless a head that goes on and on is in it."""
        super().data_received(data)
        if self._head_bytes is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > _LONGEST_HEAD:
                self.send_400_response(f"The request's head is over {_LONGEST_HEAD} bytes.")

    def on_message_begin(self) -> None:
        """Expect a head."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is there; the body has limits of its own."""
        self._head_arrived()
        super().on_headers_complete()
        if self.cycle is not None:  # there is none for an upgrade
            self.cycle.transport = _Lingering(self, self.cycle)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        """The body is there, which may be all that was waited for."""
        super().on_message_complete()
        if self._linger_timer is not None:
            self.transport.close()

    def linger(self) -> None:
        """Say that this was all, and close when the client has nothing more to send either."""
        if self._linger_timer is None and not self.transport.is_closing():
            self.transport.write_eof()
            self._linger_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer as every other error is answered, and close."""
        self._head_arrived()
        answer = problem(400, "malformed-request", "The request cannot be read", msg)
        lines = [b"HTTP/1.1 400 Bad Request", b"connection: close"]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_arrived()
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _head_arrived(self) -> None:
        self._head_bytes = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Lingering:
    """A connection as one request has it: it closes once the request's body is there."""

    def __init__(self, protocol: BoundedHttp, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol.transport, name)

    def close(self) -> None:
        """Close, though not on a client that was answered while it was sending."""
        if self._cycle.response_complete and self._cycle.more_body:
            self._protocol.linger()
        else:
            self._protocol.transport.close()

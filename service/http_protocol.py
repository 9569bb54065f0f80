"""HTTP/1.1 as uvicorn parses it, with bounds on a request's head.

uvicorn waits for a request line and headers for ever and keeps as many of them as are sent, and
answers what it cannot parse as plain text.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.problems import problem

_LONGEST_HEAD = 64 * 2**10  # bytes, give or take one read from the socket
_HEAD_SECONDS = 20.0


class BoundedHttp(HttpToolsProtocol):
    """Closes connections whose request line and headers are too long, or too long in coming."""

    _head_bytes: int | None = 0  # of the head that is being received; None while none is
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first head."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._head_arrived()
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

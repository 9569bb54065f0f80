"""HTTP/1.1 as uvicorn parses it with httptools, with bounds that no setting of uvicorn gives.

- A head has a limit of bytes and of time, and so has the time that a client takes nothing of its
  answer. (`h11_max_incomplete_event_size` is for the slower parser; `timeout_keep_alive` counts
  between two requests only.)
- Chunks, trailers and requests sent ahead have limits: parsing them keeps the event loop busy.
- An idle connection makes room for a new one. (`limit_concurrency` refuses the new one, so whoever
  opens connections and says nothing keeps everybody out.)
- A client that is refused while it is sending gets the answer: the connection lingers, because a
  connection that is closed on unread bytes is reset.
- When the service stops, bodies that still arrive have two seconds; `timeout_graceful_shutdown` is
  for what is being answered.
- What cannot be parsed is answered as a problem document.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.foundation.errors import Unavailable
from service.http.connections import Connections
from service.http.problems import problem, render

_LONGEST_HEAD = 32 * 2**10  # bytes, give or take one read from the socket
_MOST_IN_LINE = 8  # requests sent before the first is answered
_SMALLEST_PIECE = 16  # bytes: what the pieces of a body have on the whole,
_FREE_PIECES = 4096  # not counting so many

_FULL = Unavailable(
    "Too many connections at once. Try again in a moment.", slug="overloaded", retry_after=1.0
)
_STOPPING = Unavailable(
    "The service is stopping. Send the request again when it is back.", retry_after=10.0
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection waits for its client, in seconds.

    Attributes:
        head: for a request line and headers.
        linger: for the rest of a body whose request has been answered.
        unread: for a client that takes nothing of its answer.
        last: for a body that is still arriving when the service stops.
    """

    head: float = 20.0
    linger: float = 30.0
    unread: float = 60.0
    last: float = 2.0


class BoundedHttp(HttpToolsProtocol):
    """One connection; `among` are those that are counted together with it."""

    _overhead = 0  # bytes that came since there was a head, or a piece of a body
    _head_bytes = 0
    _head_arriving = True
    _head_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None  # while nothing but the body's end is awaited
    _unread_timer: asyncio.TimerHandle | None = None  # while the client takes nothing
    _pieces = 0  # that the body came in
    _body_bytes = 0

    def __init__(self, *args: Any, among: Connections, patience: Patience, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._among = among
        self._patience = patience

    @property
    def address(self) -> str:
        """Where the connection comes from."""
        return "" if self.client is None else self.client[0]

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def drop(self) -> None:
        """Close an idle connection in favour of another."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first head, unless there are too many connections."""
        super().connection_made(transport)
        if self._among.admit(self):
            self._expect_head()
        else:
            self._refuse(render(_FULL))

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._among.remove(self)
        self._head_arrived()
        for timer in (self._linger_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless it goes on and on and is no body."""
        if self.transport.is_closing():
            return
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > _LONGEST_HEAD and not self.transport.is_closing():
            what = "head" if self._head_arriving else "chunks have lengths or trailers that are"
            self.send_400_response(f"The request's {what} over {_LONGEST_HEAD} bytes.")

    def on_message_begin(self) -> None:
        """Expect a head."""
        if len(self.pipeline) >= _MOST_IN_LINE:
            raise ValueError("too many requests in line")  # stops the parser, as below
        super().on_message_begin()
        self._head_bytes = 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        """Take in the address, or a part of it."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header; trailers, which nobody asks for, are left out."""
        if self._head_arriving:
            self._count(name, value)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; the body has limits of its own."""
        self._head_arrived()
        self._overhead = 0
        self._pieces = self._body_bytes = 0
        super().on_headers_complete()
        if self.cycle is not None:  # there is none for an upgrade
            self.cycle.transport = _Lingering(self, self.cycle)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Take in a piece of the body, unless it comes in crumbs."""
        self._overhead = 0
        self._pieces += 1
        self._body_bytes += len(body)
        if self._body_bytes < _SMALLEST_PIECE * (self._pieces - _FREE_PIECES):
            raise ValueError("chunks too small")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is there, which may be all that was waited for."""
        self._overhead = 0
        super().on_message_complete()
        if self._linger_timer is not None:
            self.transport.close()

    def pause_writing(self) -> None:
        """Give the client some time to take what is there for it."""
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        """The client takes its answer again."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def shutdown(self) -> None:
        """Close when idle; what is being answered has time, what is still arriving a little."""
        super().shutdown()
        if not self.transport.is_closing() and self.cycle.more_body:
            self.loop.call_later(self._patience.last, self._stop_waiting)

    def linger(self) -> None:
        """Say that this was all, and close when the client has nothing more to send either."""
        if self._linger_timer is None and not self.transport.is_closing():
            self.transport.write_eof()
            self._linger_timer = self.loop.call_later(self._patience.linger, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer as every other error is answered, and close."""
        self._refuse(problem(400, "malformed-request", "The request cannot be read", msg))

    def _refuse(self, answer: JSONResponse) -> None:
        """Answer in place of the application, unless another answer comes first, and close."""
        self._head_arrived()
        if self.pipeline or (not self.idle and self.cycle.response_started):
            self.transport.close()
            return
        if not self.idle:  # the application need not go on
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        status = {400: b"400 Bad Request", 503: b"503 Service Unavailable"}[answer.status_code]
        lines = [b"HTTP/1.1 " + status, b"connection: close"]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()

    def _stop_waiting(self) -> None:
        """The service stops, and the body of this request is not there."""
        if self.cycle.more_body and not self.transport.is_closing():
            self._refuse(render(_STOPPING))

    def _count(self, *read: bytes) -> None:
        self._head_bytes += sum(map(len, read)) + 4
        if self._head_bytes > _LONGEST_HEAD:
            raise ValueError("head too long")

    def _expect_reader(self, left: int | None = None) -> None:
        """Abort once the client has taken nothing for a while."""
        now_left = self.transport.get_write_buffer_size()
        if left is not None and now_left >= left:
            self.transport.abort()
        else:
            self._unread_timer = self.loop.call_later(
                self._patience.unread, self._expect_reader, now_left
            )

    def _expect_head(self) -> None:
        self._head_arrived()
        self._head_arriving = True
        self._head_timer = self.loop.call_later(self._patience.head, self.transport.close)

    def _head_arrived(self) -> None:
        self._head_arriving = False
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

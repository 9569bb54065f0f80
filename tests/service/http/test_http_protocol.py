"""What goes wrong before there is a request: over a raw socket."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import ExitStack, suppress
from unittest.mock import Mock

import httpx
import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from service.foundation.settings import Settings
from service.http.connections import Connections
from service.http.middleware.head import HeadAsGet
from service.http.protocol import BoundedHttp, Patience
from tests.service.server import Serve, serving


def _connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)


def _received(connection: socket.socket) -> bytes:
    """Everything that comes until the connection ends, properly."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def _until_closed(connection: socket.socket) -> bytes:
    """Everything that comes until the connection ends, by a reset too."""
    received = b""
    with suppress(ConnectionResetError, BrokenPipeError):
        while piece := connection.recv(65536):
            received += piece
    return received


def _answer(client: httpx.Client, request: bytes) -> tuple[int, str, str]:
    """Status, content type and body of what comes back until the connection ends."""
    with _connect(client) as connection:
        connection.sendall(request)
        received = _received(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers["content-type"], body.decode()


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\r\n\r\n", id="TLS"),
        pytest.param(
            b"POST /enroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="two lengths",
        ),
        pytest.param(
            b"POST /enroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            id="negative length",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nHost: evil.example\r\n\r\n",
            id="two hosts",
        ),
    ],
)
def test_what_is_not_http_is_a_problem_document_too(
    shared: httpx.Client, request_bytes: bytes
) -> None:
    status, content_type, body = _answer(shared, request_bytes)
    assert (status, content_type) == (400, "application/problem+json")
    assert json.loads(body)["type"] == "/problems/malformed-request"


@pytest.mark.parametrize("part", [b"GET /%s HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX-Long: %s\r\n"])
def test_a_head_without_end_is_refused_at_its_limit(shared: httpx.Client, part: bytes) -> None:
    with _connect(shared) as connection:
        connection.sendall(part.partition(b"%s")[0])
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            connection.sendall(b"a" * 2**28)  # far more than the sockets' buffers hold
    assert shared.get("/healthz").status_code == 200


def test_a_head_that_is_long_in_coming_is_cut_off(settings: Settings) -> None:
    with serving(settings, patience=Patience(head=0.2)) as client:
        for sent in (b"", b"GET / HTTP/1.1\r\nX-"):
            with _connect(client) as connection:
                connection.sendall(sent)
                started = time.monotonic()
                assert connection.recv(1) == b""
                assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "path", ["/healthz", "/galleries", "/openapi.json", "/metrics", "/nowhere"]
)
def test_head_answers_as_get_does_without_the_body(shared: httpx.Client, path: str) -> None:
    got = shared.get(path)
    head = shared.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_head_of_a_stream_is_complete_with_its_head() -> None:
    sent: list[Message] = []
    streamed = 0

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal streamed
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            streamed += 1
            await send({"type": "http.response.body", "body": b"event", "more_body": True})

    async def receive() -> Message:
        complete = sent[-1]["type"] == "http.response.body"  # what uvicorn goes by
        return {"type": "http.disconnect" if complete else "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "HEAD"}
    asyncio.run(HeadAsGet(stream)(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert not sent[1].get("more_body")
    assert not sent[1]["body"]
    assert streamed == 1


def test_a_connection_between_two_requests_is_kept(shared: httpx.Client) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with _connect(shared) as connection:
        for _ in range(2):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize(
    ("path", "size", "refusal"), [("/enroll", 2**27, 413), ("/nowhere", 2**24, 404)]
)
def test_who_is_refused_while_sending_gets_the_answer(
    shared: httpx.Client, version: str, path: str, size: int, refusal: int
) -> None:
    """As urllib sends, and proxies that speak HTTP/1.0: the whole body before they listen."""
    head = (
        f"POST {path} {version}\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {size}\r\n\r\n"
    )
    status, content_type, _ = _answer(shared, head.encode() + bytes(size))
    assert (status, content_type) == (refusal, "application/problem+json")


def test_who_goes_on_sending_after_a_refusal_is_not_listened_to_for_ever(
    settings: Settings,
) -> None:
    head = b"POST /nowhere HTTP/1.0\r\nContent-Length: 1000000000\r\n\r\n"
    with (
        serving(settings, patience=Patience(linger=0.2)) as client,
        _connect(client) as connection,
    ):
        connection.sendall(head)
        _received(connection)  # the refusal, and that there is nothing after it
        time.sleep(0.5)
        connection.sendall(b"a")
        time.sleep(0.1)
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            connection.sendall(b"a")


def test_who_asks_before_sending_is_refused_at_once(shared: httpx.Client) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    with _connect(shared) as connection:
        connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        received = _received(connection)
    assert received.startswith(b"HTTP/1.1 404")  # the body was not asked for, nor waited for


def test_a_few_requests_in_line_are_answered_and_a_great_many_are_not(
    shared: httpx.Client,
) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with _connect(shared) as connection:
        connection.sendall(request * 5)
        received = b""
        while received.count(b"HTTP/1.1 200") < 5:
            received += connection.recv(65536)
    with _connect(shared) as connection:
        connection.sendall(request * 100)
        assert _until_closed(connection).count(b"HTTP/1.1 200") < 10


_CHUNKED = (
    b"POST /identify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: multipart/form-data; boundary=B\r\n\r\n5\r\n--B\r\n\r\n"
)


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(_CHUNKED + b"0\r\n" + b"X-Trailer: 1\r\n" * 10**5, id="trailers"),
        pytest.param(_CHUNKED + b"0\r\nX-Trailer: " + b"a" * 10**6, id="a long trailer"),
        pytest.param(_CHUNKED + b"1;" + b"a" * 10**6, id="a chunk's extension"),
        pytest.param(_CHUNKED + b"1\r\na\r\n" * 10**5, id="crumbs"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 10**4 + b"\r\n", id="headers"),
    ],
)
def test_a_flood_of_headers_or_of_everything_but_a_body_is_refused(
    shared: httpx.Client, flood: bytes
) -> None:
    with _connect(shared) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(flood)
        answer = _until_closed(connection)  # at once: a body has 30 s
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")


def test_connections_that_say_nothing_keep_nobody_out(serve: Serve) -> None:
    client = serve(max_connections=4)
    with ExitStack() as stack:
        silent = [stack.enter_context(_connect(client)) for _ in range(20)]
        with httpx.Client(base_url=client.base_url) as newcomer:
            assert newcomer.get("/healthz").status_code == 200
        assert silent[0].recv(1) == b""


def test_a_connection_too_many_is_answered_503(serve: Serve) -> None:
    client = serve(max_connections=4)
    with ExitStack() as stack:
        busy = [stack.enter_context(_connect(client)) for _ in range(2)]
        for connection in busy:
            connection.sendall(_CHUNKED)
        answer = b""
        deadline = time.monotonic() + 20
        while not answer:  # they are idle until they are read
            assert time.monotonic() < deadline
            with _connect(client) as newcomer:
                newcomer.settimeout(0.2)
                with suppress(TimeoutError):
                    answer = _until_closed(newcomer)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in head.lower()
    assert json.loads(body)["type"] == "/problems/overloaded"


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off() -> None:
    async def abandoned(sizes: list[int]) -> bool:
        """Whether the connection is cut that has so many bytes to send at each look."""
        config = uvicorn.Config(HeadAsGet, lifespan="off")
        protocol = BoundedHttp(
            config, ServerState(), {}, among=Connections(1), patience=Patience(unread=0.02)
        )
        transport = Mock(spec=asyncio.Transport)
        transport.get_extra_info.return_value = None
        transport.get_write_buffer_size.side_effect = sizes
        protocol.connection_made(transport)
        protocol.pause_writing()
        while not transport.abort.called and transport.get_write_buffer_size.call_count < len(
            sizes
        ):
            await asyncio.sleep(0.01)
        protocol.connection_lost(None)
        return bool(transport.abort.called)

    assert asyncio.run(abandoned([500, 400, 400, 300]))
    assert not asyncio.run(abandoned([500, 400, 300, 200]))


def test_the_end_does_not_wait_for_a_body_that_is_still_arriving(settings: Settings) -> None:
    with ExitStack() as stack:
        with serving(settings, patience=Patience(last=0.1)) as client:
            arriving, silent, part = (stack.enter_context(_connect(client)) for _ in range(3))
            arriving.sendall(_CHUNKED)
            part.sendall(b"GET / HTTP/1.1\r\n")
            time.sleep(0.2)  # until that is read
        answer = _until_closed(arriving)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"The service is stopping" in answer
        assert _until_closed(silent) == _until_closed(part) == b""

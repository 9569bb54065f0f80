"""The two clients: one blocks, one is awaited. What they can be asked is in `calls`."""

from __future__ import annotations

import os
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread
import httpx
from httpx_sse import EventSource
from pydantic import ValidationError

from service.client.answers import Answer, JobEvent
from service.client.call import Call, Download, Events, Lines, Pages, given
from service.client.calls import Calls
from service.client.failures import (
    ClientError,
    Refused,
    ServiceUnreachable,
    UnexpectedAnswer,
    raise_for_problem,
    told_as_unreachable,
)
from service.client.history import History
from service.client.retries import Retries

T = TypeVar("T")
Item = TypeVar("Item", bound=Answer)

_CONNECT_S = 10.0


class Client(Calls):
    """A connection to one service, for any number of threads. To be closed, or used in a `with`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Speak to the service at `url`.

        Args:
            url: such as `http://127.0.0.1:8000`.
            api_key: where the service wants one; without it that of GAITID_API_KEY, empty for none.
            timeout_s: how long an answer may take.
            retries: how patient the client is with a service that does not answer.
            transport: what carries the requests, instead of the network.

        Raises:
            ValueError: an address that is none, or a key that cannot be one.
        """
        self._http = httpx.Client(transport=transport, **_options(url, api_key, timeout_s))
        self._retries = retries or Retries()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def ready(self) -> bool:
        """Whether the service answers and is ready, now."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def send(self, call: Call[T]) -> T:
        """Carry out a call that is described."""
        content = call.content()
        return self._patiently(lambda: self._once(call, content), repeatable=call.repeatable)

    def turn(self, pages: Pages[Item]) -> Iterator[Item]:
        """Every item of a list, page after page."""
        page = self.send(pages.call(None))
        yield from page.items
        while page.next_cursor is not None:
            page = self.send(pages.call(page.next_cursor))
            yield from page.items

    def watch(self, events: Events) -> Iterator[JobEvent]:
        """A job's events to its end, over as many connections as it takes."""
        history = History(events, self._retries)
        while not history.complete:
            broken = None
            try:
                with closing(self._listen(history)) as arriving:
                    yield from arriving
            except (ServiceUnreachable, Refused) as error:
                broken = error
            if not history.complete:
                time.sleep(history.pause(broken))

    def read_lines(self, lines: Lines) -> Iterator[str]:
        """A long text, line by line."""
        with self._streaming(lines.path, params=given(lines.query)) as response:
            yield from response.iter_lines()

    def save(self, download: Download) -> None:
        """Bring a file home; when that fails, nothing is there."""
        self._patiently(lambda: self._save(download), repeatable=True)

    def _patiently(self, attempt: Callable[[], T], *, repeatable: bool) -> T:
        """What the first attempt to succeed gives."""
        failures = 0
        while True:
            try:
                return attempt()
            except ClientError as error:
                failures += 1
                pause = self._retries.pause(error, failures, repeatable=repeatable)
            time.sleep(pause)

    def _save(self, download: Download) -> None:
        with (
            self._streaming(download.path, params=given(download.query)) as response,
            download.writing() as write,
        ):
            for piece in response.iter_bytes():
                write(piece)

    def _once(self, call: Call[T], content: Mapping[str, Any]) -> T:
        body = None if call.file is None else call.file.pieces()
        with told_as_unreachable(self._http.base_url):
            response = self._http.request(**content, content=body)
        return _answer(call, response)

    @contextmanager
    def _streaming(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        with (
            told_as_unreachable(self._http.base_url),
            self._http.stream("GET", path, **options) as response,
        ):
            if not response.is_success:
                response.read()
                raise_for_problem(response)
            yield response

    def _listen(self, history: History) -> Generator[JobEvent]:
        with self._streaming(history.path, headers=history.headers) as response:
            history.begin(response)
            if not history.complete:
                for sent in EventSource(response).iter_sse():
                    if sent.data:  # else a ping
                        yield history.take(sent)


class AsyncClient(Calls):
    """The same to be awaited, in asyncio or trio. To be closed, or used in an `async with`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Speak to the service at `url`; as `Client` does."""
        self._http = httpx.AsyncClient(transport=transport, **_options(url, api_key, timeout_s))
        self._retries = retries or Retries()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def ready(self) -> bool:
        """Whether the service answers and is ready, now."""
        try:
            return (await self._http.get("/readyz")).is_success
        except httpx.TransportError:
            return False

    async def send(self, call: Call[T]) -> T:
        """Carry out a call that is described."""
        content = await anyio.to_thread.run_sync(call.content)
        return await self._patiently(lambda: self._once(call, content), repeatable=call.repeatable)

    async def turn(self, pages: Pages[Item]) -> AsyncIterator[Item]:
        """Every item of a list, page after page."""
        cursor = None
        while True:
            page = await self.send(pages.call(cursor))
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def watch(self, events: Events) -> AsyncIterator[JobEvent]:
        """A job's events to its end, over as many connections as it takes."""
        history = History(events, self._retries)
        while not history.complete:
            broken = None
            try:
                async with aclosing(self._listen(history)) as arriving:
                    async for event in arriving:
                        yield event
            except (ServiceUnreachable, Refused) as error:
                broken = error
            if not history.complete:
                await anyio.sleep(history.pause(broken))

    async def read_lines(self, lines: Lines) -> AsyncIterator[str]:
        """A long text, line by line."""
        async with self._streaming(lines.path, params=given(lines.query)) as response:
            async for line in response.aiter_lines():
                yield line

    async def save(self, download: Download) -> None:
        """Bring a file home; when that fails, nothing is there."""
        await self._patiently(lambda: self._save(download), repeatable=True)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], *, repeatable: bool) -> T:
        """What the first attempt to succeed gives."""
        failures = 0
        while True:
            try:
                return await attempt()
            except ClientError as error:
                failures += 1
                pause = self._retries.pause(error, failures, repeatable=repeatable)
            await anyio.sleep(pause)

    async def _save(self, download: Download) -> None:
        async with self._streaming(download.path, params=given(download.query)) as response:
            with download.writing() as write:
                async for piece in response.aiter_bytes():
                    await anyio.to_thread.run_sync(write, piece)

    async def _once(self, call: Call[T], content: Mapping[str, Any]) -> T:
        body = None if call.file is None else call.file.pieces_awaited()
        with told_as_unreachable(self._http.base_url):
            response = await self._http.request(**content, content=body)
        return _answer(call, response)

    @asynccontextmanager
    async def _streaming(self, path: str, **options: Any) -> AsyncIterator[httpx.Response]:
        with told_as_unreachable(self._http.base_url):
            async with self._http.stream("GET", path, **options) as response:
                if not response.is_success:
                    await response.aread()
                    raise_for_problem(response)
                yield response

    async def _listen(self, history: History) -> AsyncGenerator[JobEvent]:
        async with self._streaming(history.path, headers=history.headers) as response:
            history.begin(response)
            if not history.complete:
                async with aclosing(EventSource(response).aiter_sse()) as arriving:
                    async for sent in arriving:
                        if sent.data:
                            yield history.take(sent)


def _options(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """What both kinds of httpx client are made with."""
    key = os.environ.get("GAITID_API_KEY", "") if api_key is None else api_key
    if not (key.isascii() and key.isprintable() and " " not in key):
        # Else the error that httpx raises would show it.
        raise ValueError("the API key holds a character that none has: check for spaces around it")
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from error
    if base.scheme not in ("http", "https") or not base.host:
        # Else every call would be tried again and again, as if nobody were at home.
        raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8000")
    return {
        "base_url": base,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
    }


def _answer(call: Call[T], response: httpx.Response) -> T:
    raise_for_problem(response)
    try:
        return call.read(response)
    except ValidationError as error:
        raise UnexpectedAnswer(
            f"{response.url}: the answer is not what this client knows ({error.error_count()} "
            "faults); is the address right, and the client's version the service's?"
        ) from error

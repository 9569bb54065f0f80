"""The connection that `Client` builds on: requests, retries, lists, events, files and errors.

Every method takes a path made by `at` and returns the answer as a record of `answers`.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import EventSource, ServerSentEvent
from pydantic import ValidationError

from service.client.answers import Answer, JobEvent, Page
from service.client.failures import (
    ClientError,
    RateLimited,
    Refused,
    ServiceUnreachable,
    Unavailable,
    UnexpectedAnswer,
    UnusableName,
    raise_for_problem,
    unreachable_at,
)

T = TypeVar("T")
A = TypeVar("A", bound=Answer)
_Value = TypeVar("_Value")

_CONNECT_S = 10.0
_PIECE = 2**18  # bytes of a large file that are sent at once
_PAGE = "200"  # items of a list that are asked for at once

Values = Mapping[str, str | None]
"""Query parameters or form fields; None is left out."""

Upload = Path | tuple[str, bytes]
"""A file to upload: its path, or a name and the content."""

Transferred = Callable[[int], object]
"""Called with the bytes transferred so far; when a transfer is repeated, they start again at 0."""


@dataclass(frozen=True, slots=True)
class Retries:
    """When a failed call is repeated.

    The wait doubles after each failure, up to `longest_wait_s`. A random part of up to a half is
    taken off, so that clients that failed together do not return together. The time that the
    service asks for (Retry-After) is added; if it is longer than `longest_wait_s`, the call fails.

    Attributes:
        attempts: the most attempts per call.
        first_wait_s: seconds to wait after the first failure.
        longest_wait_s: the longest wait, in seconds.
        sleep: waits for a number of seconds.
    """

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    sleep: Callable[[float], object] = time.sleep

    def run(self, attempt: Callable[[], T], *, repeatable: bool) -> T:
        """Return the result of the first attempt that succeeds; see `pause`."""
        failures = 0
        while True:
            try:
                return attempt()
            except ClientError as error:
                failures += 1
                pause = self.pause(error, failures, repeatable=repeatable)
            self.sleep(pause)

    def pause(self, error: ClientError, failures: int, *, repeatable: bool) -> float:
        """Return the seconds to wait before the next attempt, or raise `error` to give up.

        Args:
            error: how the last attempt failed.
            failures: how many attempts have failed.
            repeatable: whether the call may be carried out twice. If not, it is repeated only when
                it certainly was not carried out.
        """
        match error:
            case ServiceUnreachable():
                may_pass = repeatable or not error.sent
            case RateLimited() | Unavailable():
                may_pass = True
            case Refused():  # our first attempt, whose connection broke, is still being carried out
                may_pass = error.slug == "idempotency-key-in-flight"
            case _:
                may_pass = False
        asked = error.retry_after or 0.0 if isinstance(error, Refused) else 0.0
        if failures >= self.attempts or asked > self.longest_wait_s or not may_pass:
            raise error
        wait = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 16))
        return asked + wait * random.uniform(0.5, 1.0)  # noqa: S311 - spreads, hides nothing


_UNTIL_READ = httpx.Timeout(60.0, read=None)  # the service reads a large file to its end first


class Connection:
    """A connection to one service, for any number of threads. Close it, or use it in a `with`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect to the service at `url`.

        Args:
            url: such as `http://127.0.0.1:8000`.
            api_key: None takes GAITID_API_KEY; "" sends none.
            timeout_s: the longest wait for an answer, in seconds.
            retries: when failed calls are repeated.
            transport: used instead of the network.

        Raises:
            ValueError: the URL or the key is malformed.
        """
        key = os.environ.get("GAITID_API_KEY", "") if api_key is None else api_key
        if not (key.isascii() and key.isprintable() and " " not in key):
            # httpx's own error would show the key.
            raise ValueError(
                "the API key holds a character that none has: check for spaces around it"
            )
        try:
            base = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is not a URL: {error}") from error
        if base.scheme not in ("http", "https") or not base.host:
            # Otherwise every call would be repeated, as if the service were down.
            raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8000")
        self._http = httpx.Client(
            transport=transport,
            base_url=base,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
        )
        self._retries = retries or Retries()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def ready(self) -> bool:
        """Return whether the service is ready now; asks once."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _ask(self, answer: type[A], method: str, path: str, **options: Any) -> A:
        """Return the answer to a request; for the options see `_request`."""
        response = self._request(method, path, **options)
        try:
            return answer.of(response)
        except ValidationError as error:
            raise UnexpectedAnswer(
                f"{response.url}: the answer is not what this client knows ({error.error_count()} "
                "faults); is the address right, and the client's version the service's?"
            ) from error

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Values | None = None,
        form: Values | None = None,
        files: Sequence[tuple[str, Upload]] = (),
        large: tuple[str, Path] | None = None,
        json: Mapping[str, Any] | None = None,
        changes: bool = True,
        key: str | None = None,
        file: Path | None = None,
        transferred: Transferred | None = None,
    ) -> httpx.Response:
        """Send a request, repeatedly if that helps, and return the successful response.

        A POST is repeatable, because it changes nothing or because of its key. A DELETE is not: the
        first answer would have been the receipt, the second says that there is nothing to erase.

        Args:
            method: of HTTP.
            path: made by `at`.
            query: query parameters.
            form: fields of a multipart body.
            files: files of that body, by field.
            large: the one file of that body, by field, sent piece by piece.
            json: the body instead.
            changes: whether a POST changes anything, and so needs an Idempotency-Key.
            key: the Idempotency-Key; by default one is made up.
            file: a zip archive: the body instead, sent piece by piece.
            transferred: told how much of `file` has been sent.
        """
        headers = {}
        if method == "POST" and changes:
            headers["Idempotency-Key"] = key or str(uuid.uuid4())
        options: dict[str, Any] = {
            "params": given(query),
            "data": given(form) or None,
            "files": [(field, _read(upload)) for field, upload in files] or None,
            "json": json,
            "headers": headers,
        }
        if large is not None:
            options["timeout"] = _UNTIL_READ
        if file is not None:
            # With its size, so that the service can refuse too large a file before it is sent.
            headers["Content-Type"] = "application/zip"
            headers["Content-Length"] = str(file.stat().st_size)
            options["timeout"] = _UNTIL_READ

        def attempt() -> httpx.Response:
            content = None if file is None else _pieces(file, transferred)
            with unreachable_at(self._http.base_url), ExitStack() as opened:
                if large is not None:
                    field, clip = large
                    sent = (clip.name, opened.enter_context(clip.open("rb")))
                    options["files"] = [(field, sent)]
                response = self._http.request(method, path, content=content, **options)
            raise_for_problem(response)
            return response

        return self._retries.run(attempt, repeatable=method in ("GET", "POST"))

    def _list(self, page: type[Page[A]], path: str, **query: str | None) -> Iterator[A]:
        """Yield the items of a list; each page is requested when it is needed."""
        cursor = None
        while True:
            query = {"limit": _PAGE, **query, "cursor": cursor}
            found = self._ask(page, "GET", path, query=query)
            yield from found.items
            cursor = found.next_cursor
            if cursor is None:
                return

    def _lines(self, path: str, query: Values) -> Iterator[str]:
        """Yield the lines of a long text."""
        with self._streaming(path, params=given(query)) as response:
            yield from response.iter_lines()

    def _save(self, path: str, to: Path, query: Values, transferred: Transferred | None) -> None:
        """Download a file; nothing is left at `to` when that fails."""

        def attempt() -> None:
            with (
                self._streaming(path, params=given(query)) as response,
                _private_file(to) as file,
            ):
                for piece in response.iter_bytes():
                    file.write(piece)
                    if transferred is not None:
                        transferred(file.tell())

        self._retries.run(attempt, repeatable=True)

    def _events(self, path: str, after: int) -> Iterator[JobEvent]:
        """Yield a job's events to its end, over as many connections as it takes."""
        failures = 0
        while True:
            # A service that is stopped ends its streams in good order, before the job has ended.
            broken: ClientError = ServiceUnreachable(f"{path} ended before the job", sent=True)
            headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            if after:
                headers["Last-Event-ID"] = str(after)
            try:
                with self._streaming(path, headers=headers) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:  # there are no more events
                        return
                    if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                        raise UnexpectedAnswer(f"{response.url} sends no events")
                    for sent in EventSource(response).iter_sse():
                        if not sent.data:  # a ping
                            continue
                        event = _event(sent, path)
                        after, failures = event.sequence, 0
                        yield event
                        if event.last:
                            return
            except (ServiceUnreachable, Refused) as error:
                broken = error
            failures += 1
            self._retries.sleep(self._retries.pause(broken, failures, repeatable=True))

    @contextmanager
    def _streaming(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Yield a successful response whose body is not read yet."""
        with (
            unreachable_at(self._http.base_url),
            self._http.stream("GET", path, **options) as response,
        ):
            if not response.is_success:
                response.read()
                raise_for_problem(response)
            yield response


def at(*segments: str) -> str:
    """Make a path of segments; whatever a name holds stays within its segment.

    Raises:
        UnusableName: a name that no URL can carry: `..`, `.` or an empty one.
    """
    for segment in segments:
        if segment in ("", ".", ".."):
            raise UnusableName(f"{segment!r} cannot be part of an address")
    return "".join(f"/{quote(segment, safe='')}" for segment in segments)


def given(values: Mapping[str, _Value | None] | None) -> dict[str, _Value]:
    """Return the values that are not None."""
    return {name: value for name, value in (values or {}).items() if value is not None}


def _event(sent: ServerSentEvent, path: str) -> JobEvent:
    try:
        return JobEvent(sequence=int(sent.id), kind=sent.event, data=sent.json())
    except (ValueError, ValidationError) as error:
        raise UnexpectedAnswer(f"{path} sends an event that is none of a job's") from error


def _read(upload: Upload) -> tuple[str, bytes]:
    return (upload.name, upload.read_bytes()) if isinstance(upload, Path) else upload


def _pieces(path: Path, transferred: Transferred | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
            if transferred is not None:
                transferred(file.tell())


@contextmanager
def _private_file(to: Path) -> Iterator[IO[bytes]]:
    """Yield a file that appears at `to` when it is complete, readable by this user only."""
    partial = to.with_name(f".{to.name}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        with os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
            yield file
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)

"""One description of a call, from which both clients get a method.

A call is a function that says what goes over the wire and how the answer is read. Decorated, it is
a method: of `Client` it returns the answer, of `AsyncClient` a coroutine of it.

answered   one request, one answer: T | Coroutine of T
paged      a list, page by page: Iterator[T] | AsyncIterator[T]
streamed   a job's events: Iterator[JobEvent] | AsyncIterator[JobEvent]
lined      a long text, line by line: Iterator[str] | AsyncIterator[str]
saved      a file, written as it comes: None | Coroutine of None
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
    overload,
)
from urllib.parse import quote

import anyio
import httpx

from service.client.answers import Answer, JobEvent, Page
from service.client.failures import UnusableName

if TYPE_CHECKING:
    from service.client.connection import AsyncClient, Client

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")
Item = TypeVar("Item", bound=Answer)

_PIECE = 2**18


def ignored(_count: int) -> None:
    """Nobody looks on."""


Upload = Path | tuple[str, bytes]
"""A file to upload: where it is, or a name and its bytes."""


Transferred = Callable[[int], object]
"""Told how many bytes have gone over the wire so far; when that fails it begins anew, near none."""


@dataclass(frozen=True, slots=True)
class LargeFile:
    """A file that is sent as it is, piece by piece, as a whole body."""

    path: Path
    media_type: str
    transferred: Transferred = ignored

    def pieces(self) -> Iterator[bytes]:
        """For a client that blocks."""
        sent = 0
        with self.path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
                self.transferred(sent := sent + len(piece))

    async def pieces_awaited(self) -> AsyncIterator[bytes]:
        """For a client that is awaited."""
        sent = 0
        async with await anyio.open_file(self.path, "rb") as file:
            while piece := await file.read(_PIECE):
                yield piece
                self.transferred(sent := sent + len(piece))

    @property
    def headers(self) -> dict[str, str]:
        """With its size, so that too much is refused before it is sent."""
        return {"Content-Type": self.media_type, "Content-Length": str(self.path.stat().st_size)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request and how its answer is read.

    Attributes:
        method: of HTTP.
        path: made by `at`.
        read: the answer from a successful response.
        query: after the question mark; None is left out.
        form: fields of a multipart body; None is left out.
        files: of that body, by field.
        json: the body instead.
        file: the body instead.
        key: the Idempotency-Key of a POST that changes something; one is made up where none is
            given.
        changes: whether it changes anything there; where not, it needs no key to be repeated.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    query: Mapping[str, str | None] = field(default_factory=dict)
    form: Mapping[str, str | None] = field(default_factory=dict)
    files: Sequence[tuple[str, Upload]] = ()
    json: Any = None
    file: LargeFile | None = None
    key: str | None = None
    changes: bool = True

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again when nobody knows what became of it.

        A POST may, thanks to its key, or because it changes nothing. An erasure may not: the
        second answer would be that there is nothing to erase, where the first was a receipt.
        """
        return self.method in ("GET", "POST")

    def content(self) -> dict[str, Any]:
        """What `httpx.Client.request` takes, the same at every attempt. Reads the files."""
        headers = {} if self.file is None else self.file.headers
        if self.method == "POST" and self.changes:
            headers["Idempotency-Key"] = self.key or str(uuid.uuid4())
        # The whole of a large file is looked through before it is answered.
        patience = {} if self.file is None else {"timeout": httpx.Timeout(60.0, read=None)}
        return {
            **patience,
            "method": self.method,
            "url": self.path,
            "params": given(self.query),
            "data": given(self.form) or None,
            "files": [(name, _read(upload)) for name, upload in self.files] or None,
            "json": self.json,
            "headers": headers,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages(Generic[Item]):
    """A list that comes in pages."""

    path: str
    page: type[Page[Item]]
    query: Mapping[str, str | None] = field(default_factory=dict)

    def call(self, cursor: str | None) -> Call[Page[Item]]:
        """The request for one page: the first, or the one at the cursor."""
        query = {**self.query, "cursor": cursor}
        return Call(method="GET", path=self.path, read=self.page.of, query=query)


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a job that follow the one numbered `after`."""

    job_id: str
    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """A text of many lines, too long for one answer."""

    path: str
    query: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A file to bring home, which appears at `to` when it is complete."""

    path: str
    to: Path
    query: Mapping[str, str | None] = field(default_factory=dict)
    transferred: Transferred = ignored

    @contextmanager
    def writing(self) -> Iterator[Callable[[bytes], None]]:
        """Yields what writes a piece. It is biometric data: for this user only, from the start."""
        partial = self.to.with_name(f".{self.to.name}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

        def write(piece: bytes) -> None:
            file.write(piece)
            self.transferred(file.tell())

        try:
            with os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
                yield write
            partial.replace(self.to)
        finally:
            partial.unlink(missing_ok=True)


def given(values: Mapping[str, str | None]) -> dict[str, str]:
    """What is not None."""
    return {name: value for name, value in values.items() if value is not None}


def at(template: str, *values: str) -> str:
    """A path with each `{}` replaced; whatever a value holds stays within its segment.

    Raises:
        UnusableName: a value that no address can carry, such as `..`.
    """
    for value in values:
        if value in ("", ".", ".."):
            raise UnusableName(f"{value!r} cannot be part of an address")
    return template.format(*(quote(value, safe="") for value in values))


class _Described(Generic[P, D]):
    """A description that becomes a method: what the client's `verb` makes of it."""

    verb: ClassVar[str]

    def __init__(self, describe: Callable[Concatenate[Any, P], D]) -> None:
        self.describe = describe
        self.__doc__ = describe.__doc__

    def _method(self, client: Client | AsyncClient | None) -> Any:
        if client is None:
            return self

        @functools.wraps(self.describe)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return getattr(client, self.verb)(self.describe(client, *args, **kwargs))

        return method


class answered(_Described[P, Call[T]]):
    """Makes a method of a description of one request."""

    verb = "send"

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        """The method of this client."""
        return self._method(client)


class paged(_Described[P, Pages[Item]]):
    """Makes a method of a description of a list."""

    verb = "turn"

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, Iterator[Item]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, AsyncIterator[Item]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        """The method of this client."""
        return self._method(client)


class streamed(_Described[P, Events]):
    """Makes a method of a description of a stream of events."""

    verb = "watch"

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, Iterator[JobEvent]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, AsyncIterator[JobEvent]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        """The method of this client."""
        return self._method(client)


class lined(_Described[P, Lines]):
    """Makes a method of a description of a long text."""

    verb = "read_lines"

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, Iterator[str]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, AsyncIterator[str]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        """The method of this client."""
        return self._method(client)


class saved(_Described[P, Download]):
    """Makes a method of a description of a file to bring home."""

    verb = "save"

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, None]: ...
    @overload
    def __get__(
        self, client: AsyncClient, owner: type
    ) -> Callable[P, Coroutine[Any, Any, None]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        """The method of this client."""
        return self._method(client)


def _read(upload: Upload) -> tuple[str, bytes]:
    return (upload.name, upload.read_bytes()) if isinstance(upload, Path) else upload

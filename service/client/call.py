"""One description of a call, from which both clients get a method.

A call is a function that says what goes over the wire and how the answer is read. Decorated, it is
a method: of `Client` it returns the answer, of `AsyncClient` a coroutine of it.

answered   one request, one answer: T | Coroutine of T
paged      a list, page by page: Iterator[T] | AsyncIterator[T]
streamed   a job's events: Iterator[JobEvent] | AsyncIterator[JobEvent]
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload
from urllib.parse import quote

import httpx

from service.client.answers import Answer, JobEvent, Page

if TYPE_CHECKING:
    from service.client.connection import AsyncClient, Client

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")
Item = TypeVar("Item", bound=Answer)

Upload = Path | tuple[str, bytes]
"""A file to upload: where it is, or a name and its bytes."""


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
        key: the Idempotency-Key of a POST; one is made up where none is given.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    query: Mapping[str, str | None] = field(default_factory=dict)
    form: Mapping[str, str | None] = field(default_factory=dict)
    files: Sequence[tuple[str, Upload]] = ()
    json: Any = None
    key: str | None = None

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again when nobody knows what became of it.

        A POST may, thanks to its key. An erasure may not: the second answer would be that there is
        nothing to erase, where the first was a receipt.
        """
        return self.method in ("GET", "POST")

    def content(self) -> dict[str, Any]:
        """What `httpx.Client.request` takes, the same at every attempt. Reads the files."""
        headers = {}
        if self.method == "POST":
            headers["Idempotency-Key"] = self.key or str(uuid.uuid4())
        return {
            "method": self.method,
            "url": self.path,
            "params": _given(self.query),
            "data": _given(self.form) or None,
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


def at(template: str, *values: str) -> str:
    """A path with each `{}` replaced; whatever a value holds stays within its segment.

    Raises:
        ValueError: a value that no address can carry, such as `..`.
    """
    for value in values:
        if value in ("", ".", ".."):
            raise ValueError(f"{value!r} cannot be part of an address")
    return template.format(*(quote(value, safe="") for value in values))


class _Described(Generic[P, D]):
    def __init__(self, describe: Callable[Concatenate[Any, P], D]) -> None:
        self.describe = describe
        self.__doc__ = describe.__doc__


class answered(_Described[P, Call[T]]):
    """Makes a method of a description of one request."""

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        """The method of this client."""
        if client is None:
            return self

        @functools.wraps(self.describe)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.send(self.describe(client, *args, **kwargs))

        return method


class paged(_Described[P, Pages[Item]]):
    """Makes a method of a description of a list."""

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, Iterator[Item]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, AsyncIterator[Item]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        """The method of this client."""
        if client is None:
            return self

        @functools.wraps(self.describe)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.turn(self.describe(client, *args, **kwargs))

        return method


class streamed(_Described[P, Events]):
    """Makes a method of a description of a stream."""

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, Iterator[JobEvent]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, AsyncIterator[JobEvent]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        """The method of this client."""
        if client is None:
            return self

        @functools.wraps(self.describe)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.watch(self.describe(client, *args, **kwargs))

        return method


def _given(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _read(upload: Upload) -> tuple[str, bytes]:
    return (upload.name, upload.read_bytes()) if isinstance(upload, Path) else upload

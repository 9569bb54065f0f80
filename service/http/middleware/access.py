"""Who may call: callers with an API key, once there is a key; until then this machine only.

Before a body is read, this layer decides whether the caller is known and within its rate. The next
one (`service.http.middleware.scopes`) decides whether its key has the scope of the route.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from ipaddress import ip_address

from sqlalchemy import Engine
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.exposure import is_loopback
from service.access.keys import ApiKey, any_key, find_key, hash_of
from service.access.rates import Standing, network_of, rate_limiter
from service.foundation.errors import (
    Forbidden,
    Malformed,
    NotFound,
    RateLimited,
    Reason,
    Unauthenticated,
)
from service.foundation.rate import Rate
from service.foundation.settings import Settings
from service.http.problems import render
from service.storage.database import now

CALLER = "gaitid.caller"  # in the scope: an `ApiKey`, or None while there are no keys
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
PAGE_FILES = "/page/"  # what the page at / is made of
_OPEN_PAGES = frozenset({"/", "/docs", "/openapi.json"})
READING = frozenset({"GET", "HEAD", "OPTIONS"})  # methods that change nothing
_MOST_REMEMBERED = 4096  # keys that were right


class Access:
    """Authenticates requests; guards a service without keys against other hosts and web pages."""

    def __init__(self, app: ASGIApp, engine: Engine, settings: Settings) -> None:
        self._app = app
        self._engine = engine
        self._allow_unauthenticated = settings.allow_unauthenticated
        self._trusts_proxies = bool(settings.trusted_proxies)
        self._rate_limit = settings.rate_limit
        self._has_keys = False  # once true for good: a revoked key remains
        self._allowed_hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._cors_origins = frozenset(settings.cors_origins)
        self._requests = rate_limiter(engine, "requests")
        self._wrong_key_rate = Rate.parse(settings.wrong_key_rate)
        self._wrong_keys = rate_limiter(engine, "wrong keys")
        self._right_keys: OrderedDict[str, None] = OrderedDict()  # hashes, latest last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises `Unauthenticated`, `Forbidden` or `RateLimited`; `Malformed` for two hosts, and
        `NotFound` for an address with a NUL.
        """
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            headers = Headers(scope=scope)
            if len(headers.getlist("host")) > 1:
                raise Malformed("Send one Host header.", Reason("Host", "sent more than once"))
            if "\0" in scope["path"]:  # in no id, and PostgreSQL refuses to compare with it
                raise NotFound("There is nothing at this address; /docs lists what there is.")
            self._has_keys = self._has_keys or await asyncio.to_thread(any_key, self._engine)
            if self._has_keys:
                scope[CALLER] = await self._authenticate(scope, headers)
            else:
                self._guard_open_service(scope, headers)
                scope[CALLER] = None
            standing = await self._standing(scope)
            if standing is not None:
                await self._serve_within(standing, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _authenticate(self, scope: Scope, headers: Headers) -> ApiKey | None:
        kind, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        if not token and _is_open(scope["path"]):
            # Documentation and the page are for everybody; no route behind them has a scope.
            return None
        key = None
        if kind.lower() == "bearer" and token:
            await self._refuse_guessing(scope, token)
            key = await asyncio.to_thread(find_key, self._engine, token, now())
        if key is None:
            if token and self._wrong_key_rate is not None:
                await self._wrong_keys.take(_caller_address(scope), self._wrong_key_rate)
            raise Unauthenticated(
                "Send `Authorization: Bearer <key>` with a key that `gaitid keys add` made and "
                "that was not revoked.",
                Reason("Authorization", "missing" if not token else "unknown_key"),
            )
        self._remember(token)
        return key

    async def _refuse_guessing(self, scope: Scope, token: str) -> None:
        """Refuse to look at another key from an address that sent too many wrong ones.

        A key that was right before is exempt: a stranger behind the same proxy must not lock its
        owner out.
        """
        if self._wrong_key_rate is None or hash_of(token) in self._right_keys:
            return
        standing = await self._wrong_keys.peek(_caller_address(scope), self._wrong_key_rate)
        if standing.retry_in is not None:
            raise RateLimited(
                "Too many wrong API keys came from this address. Try again later.",
                Reason("Authorization", "too_many_wrong_keys"),
                retry_after=standing.retry_in,
            )

    def _remember(self, token: str) -> None:
        hashed = hash_of(token)
        self._right_keys[hashed] = None
        self._right_keys.move_to_end(hashed)
        if len(self._right_keys) > _MOST_REMEMBERED:
            self._right_keys.popitem(last=False)

    async def _standing(self, scope: Scope) -> Standing | None:
        """Count this request; returns None if it has no limit."""
        key: ApiKey | None = scope[CALLER]
        if key is None and _is_open(scope["path"]):
            return None
        rate = Rate.parse(self._rate_limit if key is None or key.rate is None else key.rate)
        if rate is None:
            return None
        return await self._requests.take(caller_of(scope), rate)

    async def _serve_within(
        self, standing: Standing, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def send_with_standing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(standing.headers())
            await send(message)

        if standing.retry_in is None:
            await self._app(scope, receive, send_with_standing)
            return
        refusal = RateLimited(
            f"More than {standing.rate.requests} requests in {standing.rate.seconds} s. "
            "Wait as long as Retry-After says, and send fewer.",
            retry_after=standing.retry_in,
        )
        await render(refusal)(scope, receive, send_with_standing)

    def _guard_open_service(self, scope: Scope, headers: Headers) -> None:
        if not self._allow_unauthenticated and not self._comes_from_here(scope, headers):
            raise Forbidden(
                "This service has no API keys yet and answers this machine only. "
                "Make a key with `gaitid keys add`.",
                slug="loopback-only",
            )
        host = headers.get("host", "")
        if not self._host_is_ours(_host_name(host)):
            raise Forbidden(
                "The request names a host that this service does not go by. Call it by its "
                "address, or list the name in GAITID_ALLOWED_HOSTS.",
                Reason("Host", "unknown_host"),
                slug="unknown-host",
            )
        origin = headers.get("origin")
        if scope["method"] not in READING and origin not in self._cors_origins:
            foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
            if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                raise Forbidden(
                    "A page of another site may not change anything here.",
                    Reason("Origin", "foreign"),
                    slug="foreign-origin",
                )

    def _comes_from_here(self, scope: Scope, headers: Headers) -> bool:
        """Return whether a program on this machine calls, and no proxy for somebody else."""
        if not self._trusts_proxies and ("x-forwarded-for" in headers or "forwarded" in headers):
            return False
        client = scope.get("client")
        return client is not None and is_loopback(client[0])

    def _host_is_ours(self, name: str) -> bool:
        if name in ("", "localhost") or is_loopback(name):
            return name != ""
        if name in self._allowed_hosts:
            return True
        # An address or a name without a dot is in nobody's power to point at us.
        return self._allow_unauthenticated and (_is_address(name) or "." not in name)


def caller_of(scope: Scope) -> str:
    """Return whom a request counts for: its key, or its address if it has none."""
    key: ApiKey | None = scope.get(CALLER)
    return f"address {_caller_address(scope)}" if key is None else f"key {key.key_id}"


def _is_open(path: str) -> bool:
    return path in _OPEN_PAGES or path.startswith(PAGE_FILES)


def _caller_address(scope: Scope) -> str:
    client = scope.get("client")
    return "" if client is None else network_of(client[0])


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host

"""Who may call: an API key once there is one; until then this machine only.

This layer decides before a body is read whether the caller is known; what a known caller may do is
asked of each route (`service.routes.access.requires`).
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from sqlalchemy import Engine
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.auth import any_key, find_key
from service.errors import Forbidden, Malformed, NotFound, Reason, Unauthenticated
from service.exposure import is_loopback

CALLER = "gaitid.caller"  # in the scope: an `ApiKey`, or None while there are no keys
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
PAGE_FILES = "/page/"  # what the page at / is made of
_OPEN_PAGES = frozenset({"/", "/docs", "/openapi.json"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Access:
    """Authenticates requests; guards a service without keys against other hosts and web pages."""

    def __init__(
        self,
        app: ASGIApp,
        engine: Engine,
        *,
        allow_unauthenticated: bool,
        allowed_hosts: tuple[str, ...],
    ) -> None:
        self._app = app
        self._engine = engine
        self._has_keys = False  # once true for good: a revoked key remains
        self._allow_unauthenticated = allow_unauthenticated
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raises `Unauthenticated` or `Forbidden`, or for an odd address."""
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            headers = Headers(scope=scope)
            if len(headers.getlist("host")) > 1:
                raise Malformed("Send one Host header.", Reason("Host", "sent more than once"))
            if "\0" in scope["path"]:  # in no id, and PostgreSQL refuses to compare with it
                raise NotFound("There is nothing at this address; /docs lists what there is.")
            self._has_keys = self._has_keys or await asyncio.to_thread(any_key, self._engine)
            if self._has_keys:
                await self._authenticate(scope, headers)
            else:
                self._guard_open_service(scope, headers)
                scope[CALLER] = None
        await self._app(scope, receive, send)

    async def _authenticate(self, scope: Scope, headers: Headers) -> None:
        kind, _, token = headers.get("authorization", "").partition(" ")
        path = scope["path"]
        if not token and (path in _OPEN_PAGES or path.startswith(PAGE_FILES)):
            # Documentation and the page are for everybody; no route behind them has a scope.
            scope[CALLER] = None
            return
        key = None
        if kind.lower() == "bearer" and token:
            key = await asyncio.to_thread(find_key, self._engine, token.strip())
        if key is None:
            raise Unauthenticated(
                "Send `Authorization: Bearer <key>` with a key that `gaitid keys add` made and "
                "that was not revoked.",
                Reason("Authorization", "missing" if not token else "unknown_key"),
            )
        scope[CALLER] = key

    def _guard_open_service(self, scope: Scope, headers: Headers) -> None:
        client = scope.get("client")
        if not self._allow_unauthenticated and (client is None or not is_loopback(client[0])):
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
        if scope["method"] not in _READING:
            origin = headers.get("origin")
            foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
            if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                raise Forbidden(
                    "A page of another site may not change anything here.",
                    Reason("Origin", "foreign"),
                    slug="foreign-origin",
                )

    def _host_is_ours(self, name: str) -> bool:
        if name in ("", "localhost") or is_loopback(name):
            return name != ""
        if name in self._allowed_hosts:
            return True
        # An address or a name without a dot is in nobody's power to point at us.
        return self._allow_unauthenticated and (_is_address(name) or "." not in name)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host

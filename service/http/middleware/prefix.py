"""The path of a proxy behind which the service lies, such as /gait: its links begin with it.

A proxy may pass the prefix on or cut it off: it is taken off the path here if it is there, so that
nothing below knows of it, and put in front of the `Location` of every answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address

from pydantic import IPvAnyNetwork
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.foundation.errors import Malformed, Reason
from service.foundation.settings import ROOT_PATH
from service.http.problems import render

PREFIX = "gaitid.prefix"  # in the scope: the prefix, or nothing
_HEADER = "x-forwarded-prefix"
_LONGEST = 256


class Prefix:
    """Finds a request's prefix: that of the settings, or what a trusted proxy says."""

    def __init__(
        self, app: ASGIApp, root_path: str | None, trusted_proxies: Sequence[IPvAnyNetwork]
    ) -> None:
        self._app = app
        self._root_path = root_path or ""
        self._trusted = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; 400 for a proxy's prefix that is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            prefix = self._said_by_proxy(scope) or self._root_path
        except Malformed as error:
            await render(error)(scope, receive, send)
            return
        path: str = scope["path"]
        if prefix and path == prefix:  # relative links of the page begin at a folder
            await RedirectResponse(f"{prefix}/", 308)(scope, receive, send)
            return
        if prefix and path.startswith(f"{prefix}/"):
            scope["path"] = path[len(prefix) :]
        scope[PREFIX] = prefix

        async def send_with_prefix(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("location", "").startswith("/"):
                    headers["location"] = prefix + headers["location"]
            await send(message)

        await self._app(scope, receive, send_with_prefix if prefix else send)

    def _said_by_proxy(self, scope: Scope) -> str:
        said = Headers(scope=scope).getlist(_HEADER)
        if not said or not self._trusts(scope):
            return ""
        prefix = said[0].rstrip("/")
        if len(said) > 1 or len(prefix) > _LONGEST or not re.fullmatch(ROOT_PATH, prefix):
            raise Malformed(
                "The proxy's X-Forwarded-Prefix is no path such as /gait.",
                Reason("X-Forwarded-Prefix", "invalid"),
            )
        return prefix

    def _trusts(self, scope: Scope) -> bool:
        client = scope.get("client")
        if client is None:
            return False
        try:
            address = ip_address(client[0])
        except ValueError:
            return False
        return any(address in network for network in self._trusted)

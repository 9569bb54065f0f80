"""Records the changes that their routes have not recorded."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.audit.entries import Actor, Entry
from service.http.middleware.access import CALLER, READING

RECORDED = "gaitid.recorded"  # in the scope: the route has recorded what it did


class Audit:
    """Records a successful change by its method and route, before it is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return

        async def send_when_recorded(message: Message) -> None:
            if (
                message["type"] == "http.response.start"
                and 200 <= message["status"] < 300
                and RECORDED not in scope
            ):
                route = getattr(scope.get("route"), "path", "unmatched")
                entry = Entry("call", details={"method": scope["method"], "route": route})
                audit = scope["app"].state.resources.audit
                await audit.answered(entry, Actor.of(scope.get(CALLER)))
            await send(message)

        await self._app(scope, receive, send_when_recorded)

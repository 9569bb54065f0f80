"""An id, one log line and one measurement for each request.

Text of unexpected exceptions goes to the log and never to the client.
"""

from __future__ import annotations

import logging
import re
from asyncio import CancelledError
from contextlib import ExitStack
from time import perf_counter
from typing import TYPE_CHECKING

import uuid_utils
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.foundation.errors import CutOff, ServiceError, Unavailable
from service.foundation.logs import request_id
from service.foundation.metrics import Metrics
from service.foundation.tracing import span
from service.http.draining import Draining
from service.http.problems import internal_error, render, render_http
from service.storage.failures import is_away, storage_trouble
from service.storage.postgresql import CommitUnknown

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_log = logging.getLogger(__name__)
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_STOPPING = Unavailable(
    "The service was stopped before it could answer. Send the request again when it is back.",
    retry_after=10.0,
)
# Of what is no page of ours: shown by a browser all the same, it loads, runs and frames nothing.
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
_CLIENT_CLOSED = 499  # for the log only; there is nobody left to answer


class RequestContext:
    """Gives each request an id (its X-Request-ID, if that is acceptable), and logs it.

    Refuses what comes when the service takes nothing new any more.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, draining: Draining | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._draining = draining or Draining()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        current = sent if _ACCEPTABLE_ID.fullmatch(sent) else str(uuid_utils.uuid7())
        token = request_id.set(current)
        started = perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = current
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers.setdefault("Content-Security-Policy", _NO_PAGE)
                headers.setdefault("Cache-Control", "no-store")
                if self._draining.leaving:
                    headers["Connection"] = "close"
            await send(message)

        method = _method(scope["method"])
        ending = ExitStack()
        parent = Headers(scope=scope).get("traceparent")
        traced = ending.enter_context(span(method, parent=parent, server=True))
        try:
            self._draining.require_open(scope["path"])
            with self._draining.begun():
                await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = status or _CLIENT_CLOSED
        except CancelledError:  # by the server, which has waited as long as it may and ends
            if status is not None:
                raise
            await render(_STOPPING)(scope, receive, send_with_id)
        except CutOff as error:  # the server cuts the connection of an answer without an end
            _log.warning("an answer was cut off: %s", error)
        except ServiceError as error:  # raised by a layer outside of the router
            await render(error)(scope, receive, send_with_id)
        except HTTPException as error:
            await render_http(error)(scope, receive, send_with_id)
        except Exception as error:
            trouble = storage_trouble(error)
            if not is_away(error) or isinstance(error, CommitUnknown):  # somebody has to look
                _log.exception("unexpected exception" if trouble is None else trouble.problem_slug)
            if status is not None:  # too late for another answer: cut the connection
                raise
            answer = internal_error(current) if trouble is None else render(trouble)
            await answer(scope, receive, send_with_id)
        finally:
            seconds = perf_counter() - started
            route = _route(scope)
            self._metrics.request_seconds.labels(
                method, route, str(status or _CLIENT_CLOSED)
            ).observe(seconds)
            _log.info(
                "request",
                extra={
                    "method": method,
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                },
            )
            if traced is not None:
                _describe(traced, method, route, status or _CLIENT_CLOSED)
            ending.close()
            request_id.reset(token)


def _route(scope: Scope) -> str:
    """The template of the address, which names nobody."""
    route: str = getattr(scope.get("route"), "path", "unmatched")
    return route


def _describe(traced: Span, method: str, route: str, status: int) -> None:
    """Tell a request's span what is in its log line."""
    traced.update_name(f"{method} {route}")
    traced.set_attributes(
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
    )


def _method(name: str) -> str:
    """Return a known method or OTHER, so that strangers cannot invent label values."""
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return name if name in known else "OTHER"

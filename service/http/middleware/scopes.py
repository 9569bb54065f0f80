"""The scope that a route requires, checked before the request's body is read.

Routes declare it as a dependency, made by `requires`. Without this layer it would be checked only
after the framework has read the whole body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.keys import ApiKey
from service.access.keys import Scope as KeyScope
from service.foundation.errors import Forbidden, Reason
from service.http.middleware.access import CALLER


@dataclass(frozen=True)
class Requirement:
    """A dependency that requires one of these scopes of the caller's key."""

    scopes: tuple[KeyScope, ...]

    async def __call__(self, request: Request) -> None:
        """Raise `Forbidden` unless the key has one of the scopes, or there are no keys."""
        self.ask(request.scope.get(CALLER))

    def ask(self, key: ApiKey | None) -> None:
        """Raise `Forbidden` for a key that has none of the scopes."""
        if key is not None and not any(key.may(scope) for scope in self.scopes):
            named = " or ".join(f"`{scope}`" for scope in self.scopes)
            raise Forbidden(
                f"This call needs a key with the scope {named}.",
                Reason("Authorization", "scope_missing"),
            )


def requires(*scopes: KeyScope) -> Requirement:
    """Return the dependency of a route for keys with one of these scopes."""
    return Requirement(scopes)


class Scopes:
    """Refuses a key that lacks the scope of the route it calls."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._routes: list[tuple[RouteContext, tuple[Requirement, ...]]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raises `Forbidden`."""
        if scope["type"] == "http" and scope.get(CALLER) is not None:
            for requirement in self._requirements(scope):
                requirement.ask(scope[CALLER])
        await self._app(scope, receive, send)

    def _requirements(self, scope: Scope) -> tuple[Requirement, ...]:
        if self._routes is None:  # the first request finds every route in its place
            self._routes = list(requirements(scope["app"]))
        for route, asked in self._routes:
            if route.matches(scope)[0] is Match.FULL:
                return asked
        return ()


def requirements(app: FastAPI) -> Iterator[tuple[RouteContext, tuple[Requirement, ...]]]:
    """Yield every route with what it and its routers require of a key."""
    for route in iter_route_contexts(app.routes):
        dependant: Dependant | None = getattr(route, "dependant", None)
        yield route, () if dependant is None else tuple(_asked(dependant))


def _asked(dependant: Dependant) -> Iterator[Requirement]:
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Requirement):
            yield dependency.call
        yield from _asked(dependency)

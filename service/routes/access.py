"""What every route asks of a request before it looks at it: a scope, and known fields only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import FormData

from service.auth import ApiKey, Scope
from service.errors import Forbidden, Reason
from service.middleware.access import CALLER


def requires(*scopes: Scope) -> Callable[[Request], None]:
    """A dependency that asks the caller's key for one of these scopes."""

    def check(request: Request) -> None:
        key: ApiKey | None = request.scope.get(CALLER)
        if key is not None and not any(key.may(scope) for scope in scopes):
            named = " or ".join(f"`{scope}`" for scope in scopes)
            raise Forbidden(
                f"This call needs a key with the scope {named}.",
                Reason("Authorization", "scope_missing"),
            )

    return check


async def only_known_fields(request: Request) -> None:
    """Refuse query parameters and form fields that the route does not declare, and doubled ones.

    Raises `RequestValidationError`, as for any other field that is wrong. JSON bodies are models
    that refuse unknown fields themselves.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    query = {parameter.alias for parameter in route.dependant.query_params}
    errors = _faults("query", query, set(), (name for name, _ in request.query_params.multi_items()))
    form = getattr(request, "_form", None)  # parsed by the framework, if the route takes a form
    if isinstance(form, FormData):
        fields = {parameter.alias for parameter in route.dependant.body_params}
        lists = {"sequence"} & fields
        errors += _faults("body", fields, lists, (name for name, _ in form.multi_items()))
    if errors:
        raise RequestValidationError(errors)


def _faults(
    part: str, known: set[str], lists: set[str], sent: Iterable[str]
) -> list[dict[str, object]]:
    faults: list[dict[str, object]] = []
    for name, times in Counter(sent).items():
        shown = name if len(name) <= 64 and name.isprintable() else name[:63] + "…"
        if name not in known:
            faults.append({"type": "extra", "loc": (part, shown), "msg": "Unknown field"})
        elif times > 1 and name not in lists:
            faults.append({"type": "twice", "loc": (part, shown), "msg": "Sent more than once"})
    return faults

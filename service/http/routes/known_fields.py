"""Every route accepts known fields only, each once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, get_args, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import FormData

from service.foundation.errors import Malformed

_TWICE = "Sent more than once"


async def only_known_fields(request: Request) -> None:
    """Refuse query parameters and form fields that are unknown, repeated or empty.

    The framework treats an empty field as one that was left out: a script whose variable is empty
    would enrol into the default gallery. JSON bodies are models that refuse unknown fields
    themselves, but of a repeated name the framework takes the last.

    Raises `RequestValidationError`, as for any other invalid field, and `Malformed`.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    query = {parameter.alias for parameter in route.dependant.query_params}
    errors = _faults("query", query, set(), request.query_params.multi_items())
    form = getattr(request, "_form", None)  # parsed by the framework, if the route takes a form
    if isinstance(form, FormData):
        fields = {parameter.alias for parameter in route.dependant.body_params}
        lists = {
            parameter.alias
            for parameter in route.dependant.body_params
            if _is_list(parameter.field_info.annotation)
        }
        errors += _faults("body", fields, lists, form.multi_items())
    if hasattr(request, "_json"):  # parsed by the framework
        errors += _doubled(await request.body())
    if errors:
        raise RequestValidationError(errors)


def _is_list(annotation: Any) -> bool:
    """Whether a field takes several values, also if it may be left out."""
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


def _doubled(body: bytes) -> list[dict[str, object]]:
    """Return a fault for each name that is repeated in one object of a JSON body."""
    faults: list[dict[str, object]] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            times = Counter(name for name, _ in pairs)
            doubled = (name for name in times if times[name] > 1)
            faults.extend(_fault("twice", "body", name, _TWICE) for name in doubled)

    try:
        json.loads(body, object_pairs_hook=look)
    except RecursionError as error:  # a little deeper on the stack than where it was parsed
        raise Malformed("The body is nested too deeply.") from error
    return faults


def _faults(
    part: str, known: set[str], lists: set[str], sent: list[tuple[str, Any]]
) -> list[dict[str, object]]:
    faults: list[dict[str, object]] = []
    empty = {name for name, value in sent if value == ""}
    for name, times in Counter(name for name, _ in sent).items():
        if name not in known:
            faults.append(_fault("extra", part, name, "Unknown field"))
        elif times > 1 and name not in lists:
            faults.append(_fault("twice", part, name, _TWICE))
        elif name in empty:
            faults.append(_fault("empty", part, name, "Empty: leave it out"))
    return faults


def _fault(kind: str, part: str, name: str, message: str) -> dict[str, object]:
    shown = name if 1 <= len(name) <= 64 and name.isprintable() else repr(name[:63])
    return {"type": kind, "loc": (part, shown), "msg": message}

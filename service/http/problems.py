"""Errors as application/problem+json (RFC 9457): the service's own and the framework's."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from service.foundation.errors import Reason, ServiceError, TooLarge
from service.storage.failures import storage_trouble

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_MOST_REASONS = 100
_MOST_NAMED = 10
_OVER = ("Too many files.", "Too many fields.", "Part exceeded maximum size")  # Starlette's words


def problem(
    status: int,
    slug: str,
    title: str,
    detail: str,
    reasons: Sequence[Reason] = (),
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """Return a problem document as a response; `members` come after the standard ones."""
    return JSONResponse(
        {
            "type": f"/problems/{slug}",
            "title": title,
            "status": status,
            "detail": detail,
            "errors": [
                {"where": reason.where, "reason": reason.reason}
                for reason in reasons[:_MOST_REASONS]
            ],
            **(members or {}),
        },
        status_code=status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def render(error: ServiceError) -> JSONResponse:
    """Return the response for one of the service's own errors."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return problem(
        error.status,
        error.problem_slug,
        error.title,
        error.detail,
        error.reasons,
        headers,
        error.members(),
    )


def internal_error(request_id: str) -> JSONResponse:
    """Return the response for an unexpected exception: it says only where to look it up."""
    return problem(
        500,
        ServiceError.slug,
        ServiceError.title,
        f"This is a fault of the service. Its log has the cause under request id {request_id}.",
    )


def install(app: FastAPI) -> None:
    """Register handlers for our errors, the framework's, and its validation errors."""
    app.exception_handler(ServiceError)(_own)
    app.exception_handler(HTTPException)(_frameworks)
    app.exception_handler(RequestValidationError)(_validation)


async def _own(_request: Request, error: ServiceError) -> JSONResponse:
    return render(error)


_FRAMEWORKS = {
    400: ("malformed-request", "The request cannot be read", "Check how the body is encoded."),
    404: ("not-found", "Not found", "There is nothing at this address; /docs lists what there is."),
    413: ("request-too-large", "Over a limit", "Send less at a time."),
    405: ("method-not-allowed", "Method not allowed", "Use one of the methods in `Allow`."),
}


async def _frameworks(request: Request, error: HTTPException) -> JSONResponse:
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _methods(request)):
        error.headers = {"Allow": ", ".join(methods)}
    return render_http(error)


def _methods(request: Request) -> list[str]:
    """Return every documented method of an address; the framework names its first route's only."""
    paths = request.app.openapi()["paths"]
    matching = [path for path in paths if compile_path(path)[0].match(request.url.path)]
    if not matching:
        return []
    closest = min(matching, key=lambda path: path.count("{"))
    methods = {method.upper() for method in paths[closest]}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def render_http(error: HTTPException) -> JSONResponse:
    """Return the response for one of the framework's errors, or for what caused it."""
    if isinstance(error.__cause__, Exception) and (trouble := storage_trouble(error.__cause__)):
        _log.error("an upload could not be kept while it was read: %s", error.__cause__)
        return render(trouble)
    if error.status_code == HTTPStatus.BAD_REQUEST and str(error.detail).startswith(_OVER):
        return render(TooLarge(str(error.detail)))
    slug, title, advice = _FRAMEWORKS.get(
        error.status_code, ("http-error", HTTPStatus(error.status_code).phrase, "")
    )
    detail = str(error.detail)
    if detail == HTTPStatus(error.status_code).phrase:  # the framework's default says nothing new
        detail = advice
    return problem(error.status_code, slug, title, detail or title, headers=error.headers)


async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
    errors: list[Any] = list(error.errors())
    if any(item["type"] == "json_invalid" for item in errors):
        return problem(
            400,
            "malformed-request",
            "The request cannot be read",
            "The body is not JSON.",
            [Reason("body", _sentence(item)) for item in errors],
        )
    if (reason := _not_a_form(request, errors)) is not None:
        reasons = [reason]
    else:
        reasons = [_reason(item) for item in errors]
    named = ", ".join(list(dict.fromkeys(reason.where for reason in reasons))[:_MOST_NAMED])
    return problem(
        422,
        "invalid-field",
        "A field is missing, unknown or invalid",
        f"Correct {named} and send the request again; /docs describes every field.",
        reasons,
    )


def _not_a_form(request: Request, errors: Sequence[Mapping[str, Any]]) -> Reason | None:
    """Return a reason if JSON or an array was sent to a call that takes a form.

    The framework then finds no field, and reports each one as missing.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("", "multipart/form-data", "application/x-www-form-urlencoded"):
        return None
    # A field of JSON that is missing comes with the JSON that lacks it.
    missing = [e for e in errors if e["type"] == "missing" and e["loc"][0] == "body"]
    if any(len(item["loc"]) > 1 and item.get("input") is None for item in missing):
        return Reason("Content-Type", "must be multipart/form-data")
    return None


def _reason(item: Mapping[str, Any]) -> Reason:
    if len(item["loc"]) == 1 and isinstance(item.get("input"), bytes):
        # The framework reads as JSON only what is said to be: `curl -d` alone says it is a form.
        return Reason("Content-Type", "must be application/json")
    return Reason(_where(item["loc"]), _sentence(item))


def _where(location: Sequence[str | int]) -> str:
    """Return a field's name, without the part of the request that it is in."""
    inside = location[1:] if len(location) > 1 else location
    return "".join(
        f"[{step}]" if isinstance(step, int) else (f".{step}" if position else str(step))
        for position, step in enumerate(inside)
    )


def _sentence(item: Mapping[str, Any]) -> str:
    return str(item["msg"]).removeprefix("Value error, ").replace(
        "Expected UploadFile, received: <class 'str'>", "send a file, not text"
    )  # fmt: skip

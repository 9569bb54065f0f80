"""The OpenAPI document: what the framework knows of the routes, corrected and completed.

The framework leaves out that every error is a problem document, that calls take a key, and which
headers middleware reads and answers carry; and it says that a form or an address may carry null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from service.http import problems
from service.http.schemas import Problem

Json = dict[str, Any]

_FORM = "multipart/form-data"
_UNGUARDED = "health"  # the tag of what answers without a key
_LOCATED = frozenset({"create_gallery", "import_gallery", "add_model"})  # beside every new job
_IDEMPOTENCY_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Of your own making: the same request with the same key is carried out once.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_CLASHING = frozenset({"edit_sequence", "edit_subject", "import_gallery", "remove_model"})
_LOCATION: Json = {
    "description": "Where what was made is.",
    "schema": {"type": "string", "format": "uri-reference"},
}
_WHOLE = frozenset(  # lists and what makes something new: nothing that may not be there is named
    {
        "add_model",
        "create_gallery",
        "import_gallery",
        "list_galleries",
        "list_jobs",
        "list_models",
        "read_audit",
    }
)
_RETRY_AFTER: Json = {
    "Retry-After": {
        "description": "Seconds to wait before the same request may be sent again.",
        "schema": {"type": "integer"},
    }
}
_PROBLEMS: Mapping[str, str] = {
    "400": "The request, or a file in it, cannot be read.",
    "401": "No key, or one that is unknown, revoked or expired.",
    "403": "The key lacks the scope; there are no keys, and this comes from elsewhere; or the "
    "operator has turned it off.",
    "404": "A gallery, subject, sequence, job, model, recipe or dataset is not there.",
    "408": "The body stopped arriving.",
    "409": "It contradicts what is there, or its Idempotency-Key is in use.",
    "413": "Over a limit of the request or of one walk.",
    "415": "Not a sequence of silhouettes, or a body that is compressed as a whole.",
    "422": "A field, a header or a walk that cannot be accepted; `errors` names it.",
    "429": "More requests than the key may send.",
    "500": "A fault of the service.",
    "503": "Overloaded or not ready; try again.",
    "507": "No space is left where the service keeps its data.",
}


def operation_id(route: APIRoute) -> str:
    """Name an operation after its function; no two are called alike."""
    return route.name


def openapi(app: FastAPI) -> Json:
    """Return the document that describes every call of an application."""
    schema = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    _describe_errors(schema)
    _describe_keys(schema)
    _describe_headers(schema)
    _describe_fields(schema)
    return schema


def _operations(schema: Json) -> Iterator[Json]:
    for path in schema["paths"].values():
        yield from path.values()


def _describe_errors(schema: Json) -> None:
    """Describe every operation's errors as problem documents, validation errors included."""
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    components.update(problem.pop("$defs"))
    components["Problem"] = problem
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    answer = {"description": "An error (RFC 9457)", "content": content}
    schema["components"]["responses"] = {
        f"Problem{status}": {"description": description, "content": content}
        | ({"headers": _RETRY_AFTER} if status in ("429", "503") else {})
        for status, description in _PROBLEMS.items()
    }
    for path in schema["paths"].values():
        for method, operation in path.items():
            responses = operation["responses"]
            responses.pop("422", None)
            for status, response in responses.items():
                if status >= "400":  # a problem with members of its own
                    own = response["content"]["application/json"]
                    response["content"] = {problems.MEDIA_TYPE: own}
            for status in sorted(_problems_of(method, operation) - responses.keys()):
                responses[status] = {"$ref": f"#/components/responses/Problem{status}"}
            responses["default"] = answer


def _problems_of(method: str, operation: Json) -> set[str]:
    """Return the statuses of the errors that an operation may answer with."""
    found = {"422", "500"}  # of every call: an unknown parameter is refused everywhere
    if operation["operationId"] != "alive":
        found |= {"403", "503"}
    if _UNGUARDED in operation.get("tags", ()):
        return found
    found |= {"401", "429"}
    if operation["operationId"] not in _WHOLE:
        found.add("404")
    if "requestBody" in operation:
        found |= {"400", "408", "413", "415"}
    if operation["operationId"] == "follow_job":
        found.add("400")  # a bad Last-Event-ID
    if method != "get":
        found.add("507")
    if method == "post" or operation["operationId"] in _CLASHING:
        found.add("409")
    return found


def _describe_keys(schema: Json) -> None:
    """Describe which operations take a key."""
    schema["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key that `gaitid keys add` made; none while there are none.",
        }
    }
    for operation in _operations(schema):
        if _UNGUARDED not in operation.get("tags", ()):
            operation["security"] = [{"key": []}]


def _describe_headers(schema: Json) -> None:
    """Describe the Idempotency-Key of every POST, and which answers have a Location."""
    for path in schema["paths"].values():
        if "post" in path:
            path["post"].setdefault("parameters", []).append(dict(_IDEMPOTENCY_KEY))
    for operation in _operations(schema):
        for status, answer in operation["responses"].items():
            if status == "202" or (status == "201" and operation["operationId"] in _LOCATED):
                answer["headers"] = {"Location": _LOCATION}


def _describe_fields(schema: Json) -> None:
    """Describe that forms have no other fields, and that forms, addresses and headers hold no null.

    The framework allows `null` in them, but it would be the word "null".
    """
    fields = []
    for operation in _operations(schema):
        fields += [parameter["schema"] for parameter in operation.get("parameters", ())]
        body = operation.get("requestBody", {}).get("content", {}).get(_FORM)
        if body is not None:
            form = schema["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
            form["additionalProperties"] = False
            fields += form["properties"].values()
    for field in fields:
        choices = [choice for choice in field.get("anyOf", ()) if choice != {"type": "null"}]
        if len(choices) == 1:
            del field["anyOf"]
            field.update({**choices[0], **field})

"""The OpenAPI document: what the framework knows of the routes, and what it does not.

The framework leaves out that every error is a problem document, that calls take a key, which
headers middleware reads and answers carry, and how one call's answer leads to the next; and it says
that a form or an address may carry null.
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
_LOCATION: Json = {
    "description": "Where what was made is.",
    "schema": {"type": "string", "format": "uri-reference"},
}
_CLASHING = frozenset({"edit_sequence", "edit_subject", "import_gallery", "remove_model"})
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
    "403": "The key lacks the scope; or there are no keys, and this comes from elsewhere.",
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

# From an operation: to another, with where its parameters are in the request or the answer.
_GALLERY_IN_ANSWER = {"gallery": "$response.body#/gallery"}
_SUBJECT = {"subject_id": "$response.body#/subject_id", **_GALLERY_IN_ANSWER}
_FIRST_SEQUENCE = {"sequence_id": "$response.body#/sequences/0/sequence_id"}
_SEQUENCE = {"sequence_id": "$request.path.sequence_id"}
_GALLERY = {"gallery": "$response.body#/name"}
_MODEL = {"name": "$response.body#/name"}
_JOB = {"job_id": "$response.body#/id"}
_FIRST_JOB = {"job_id": "$response.body#/items/0/id"}
_OF_JOB = {"show_job": _JOB, "cancel_job": _JOB, "follow_job": _JOB}
_LINKS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "enroll": {
        "show_subject": _SUBJECT,
        "erase_subject": _SUBJECT,
        "show_sequence": _FIRST_SEQUENCE,
        "edit_sequence": _FIRST_SEQUENCE,
        "silhouettes_as_arrays": _FIRST_SEQUENCE,
        "silhouettes_as_film": _FIRST_SEQUENCE,
        "energy_image": _FIRST_SEQUENCE,
        "erase_sequence": _FIRST_SEQUENCE,
    },
    "identify": {
        "show_sequence": {"sequence_id": "$response.body#/candidates/0/sequence_id"},
        "show_subject": {
            "subject_id": "$response.body#/candidates/0/subject_id",
            **_GALLERY_IN_ANSWER,
        },
    },
    "create_gallery": {
        "show_gallery": _GALLERY,
        "change_gallery": _GALLERY,
        "export_gallery": _GALLERY,
        "erase_gallery": _GALLERY,
        "list_subjects": _GALLERY,
    },
    "list_galleries": {
        "list_galleries": {"cursor": "$response.body#/next_cursor"},
        "show_gallery": {"gallery": "$response.body#/items/0/name"},
    },
    "list_subjects": {
        "list_subjects": {
            "gallery": "$response.body#/items/0/gallery",
            "cursor": "$response.body#/next_cursor",
        },
        "show_subject": {
            "subject_id": "$response.body#/items/0/subject_id",
            "gallery": "$response.body#/items/0/gallery",
        },
    },
    "show_subject": {"erase_subject": _SUBJECT, "show_sequence": _FIRST_SEQUENCE},
    "show_sequence": {
        "silhouettes_as_arrays": _SEQUENCE,
        "silhouettes_as_film": _SEQUENCE,
        "energy_image": _SEQUENCE,
        "erase_sequence": _SEQUENCE,
    },
    "distill": _OF_JOB,
    "evaluate": _OF_JOB,
    "calibrate": _OF_JOB,
    "audit_gallery": _OF_JOB,
    "reindex": _OF_JOB,
    "activate": _OF_JOB,
    "rollback": _OF_JOB,
    "list_jobs": {
        "list_jobs": {"cursor": "$response.body#/next_cursor"},
        "show_job": _FIRST_JOB,
        "follow_job": _FIRST_JOB,
    },
    "add_model": {"show_model": _MODEL, "activate": _MODEL, "remove_model": _MODEL},
    "list_models": {"show_model": {"name": "$response.body#/items/0/name"}},
}


def operation_id(route: APIRoute) -> str:
    """An operation is called as the function that carries it out, which no two share."""
    return route.name


def openapi(app: FastAPI) -> Json:
    """The document that describes every call of an application."""
    schema = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    _say_errors(schema)
    _say_keys(schema)
    _say_headers(schema)
    _say_links(schema)
    _say_what_forms_hold(schema)
    return schema


def _operations(schema: Json) -> Iterator[Json]:
    for path in schema["paths"].values():
        yield from path.values()


def _say_errors(schema: Json) -> None:
    """Say of every operation that its errors are problem documents, validation included."""
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
    """The statuses of the errors that an operation may answer with."""
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


def _say_keys(schema: Json) -> None:
    """Say which operations take a key."""
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


def _say_headers(schema: Json) -> None:
    """Say that every POST takes a key of its own, and which answers say where to go."""
    for path in schema["paths"].values():
        if "post" in path:
            path["post"].setdefault("parameters", []).append(dict(_IDEMPOTENCY_KEY))
    for operation in _operations(schema):
        for status, answer in operation["responses"].items():
            if status == "202" or (status == "201" and operation["operationId"] in _LOCATED):
                answer["headers"] = {"Location": _LOCATION}


def _say_links(schema: Json) -> None:
    """Say how an operation's answer leads to other operations."""
    by_id = {operation["operationId"]: operation for operation in _operations(schema)}
    for source, targets in _LINKS.items():
        for target in [name for name in targets if name not in by_id]:
            raise LookupError(f"there is no operation {target!r} to link to")
        responses = by_id[source]["responses"]
        success = next(answer for status, answer in responses.items() if status.startswith("2"))
        success["links"] = {
            target: {"operationId": target, "parameters": dict(parameters)}
            for target, parameters in targets.items()
        }


def _say_what_forms_hold(schema: Json) -> None:
    """Say that forms have no other fields, and that no form, address or header can hold null.

    Where the framework says `null`, it would be the word.
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

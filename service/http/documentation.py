"""The page at /docs: every call, its fields and its answers, from the OpenAPI document.

FastAPI's own page fetches Swagger UI from another host at every visit. This one works in a closed
network, and tells nobody that it is read.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from html import escape
from typing import Any

Json = Mapping[str, Any]

_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }
summary { cursor: pointer; padding: .4rem 0 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem }
th, td { text-align: left; vertical-align: top; border-top: 1px solid #888; padding: .2rem }
code { font-family: ui-monospace, monospace }
"""
# Its own style and nothing else: no script, no picture, no form, no frame.
POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
<h1>{title} {version}</h1>
<p>{summary} The same as a document for programs: <a href="openapi.json">openapi.json</a>.
Every error is an <code>application/problem+json</code> document (RFC 9457).</p>
"""


def documentation_page(schema: Json) -> str:
    """Return an OpenAPI document as one HTML page that loads nothing."""
    info = {name: escape(str(schema["info"].get(name, ""))) for name in ("title", "version")}
    page = [_HEAD.format(**info, style=_STYLE, summary=escape(schema["info"].get("summary", "")))]
    tag = None
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if operation.get("tags") != tag:
                tag = operation.get("tags")
                page.append(f"<h2>{escape(', '.join(tag or []))}</h2>\n")
            page += _operation(schema, method.upper(), path, operation)
    return "".join([*page, "</html>\n"])


def _operation(schema: Json, method: str, path: str, operation: Json) -> Iterator[str]:
    description = escape(operation.get("description", operation.get("summary", "")))
    call = f"<code><b>{method}</b> {escape(path)}</code>"
    yield f"<details><summary>{call} · {description}</summary>\n"
    fields = [
        (item["name"], item["in"], item.get("required", False), item["schema"], item)
        for item in operation.get("parameters", [])
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        body = _resolved(schema, content["schema"])
        fields += [
            (name, kind, name in body.get("required", []), field, field)
            for name, field in body.get("properties", {}).items()
        ]
    if fields:
        yield "<table><tr><th>field<th>in<th>type<th>\n"
    for name, where, required, field, described in fields:
        needed = "required" if required else f"default {field.get('default', 'none')}"
        text = f"{described.get('description', '')} ({needed})".strip()
        cells = (escape(where), escape(_type(field)), escape(text))
        yield f"<tr><td><code>{escape(name)}</code><td>" + "<td>".join(cells) + "\n"
    if fields:
        yield "</table>\n"
    for status, answer in operation["responses"].items():
        for kind, content in answer.get("content", {}).items():
            properties = _resolved(schema, content.get("schema", {})).get("properties", {})
            names = ", ".join(f"<code>{escape(name)}</code>" for name in properties)
            yield f"<p>{escape(status)} {escape(kind)} {names}</p>\n"
    errors = ", ".join(sorted(status for status in operation["responses"] if status[0] in "45"))
    yield f"<p>Errors: {escape(errors)}</p>\n" if errors else ""
    yield "</details>\n"


def _resolved(schema: Json, part: Json) -> Json:
    """Return the component that `part` refers to, or `part` itself."""
    if "$ref" not in part:
        return part
    found: Json = schema["components"]["schemas"][part["$ref"].rpartition("/")[2]]
    return found


def _type(field: Json) -> str:
    """Return a field's type in a few words."""
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if field.get("contentMediaType") == "application/octet-stream":
        return "file"
    if field.get("contentMediaType") == "application/json":
        return "JSON object in a string"
    if "items" in field:
        return f"list of {_type(field['items'])}"
    kind = str(field.get("type", "any"))
    bounds = [f"{sign} {field[name]}" for name, sign in _BOUNDS.items() if name in field]
    return " ".join([kind, *bounds])


_BOUNDS = {"minimum": "≥", "maximum": "≤", "maxLength": "up to", "pattern": "matching"}

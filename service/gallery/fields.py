"""Fields of requests that need more than a type: metadata, filters, names, cursors."""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, WithJsonSchema

from service.foundation.errors import Invalid, Reason
from service.gallery.records import Metadata, Scalar
from service.gallery.roster import Filter

MAX_METADATA_BYTES = 16 * 1024
_MOST_FIELDS = 64
_MOST_VALUES = 100
_LONGEST_NAME = 64
_LONGEST_TEXT = 1024
LONGEST_DISPLAY_NAME = 200
_LARGEST_NUMBER = 2**53  # up to which every JSON reader keeps integers exactly


def _addressable(value: str) -> str:
    if value in (".", ".."):
        raise ValueError("'.' and '..' cannot be part of an address")
    return value


SubjectId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9._:@-]{1,128}$",
        description="Your own id of the person: 1 to 128 of A-Z a-z 0-9 . _ : @ -",
    ),
    AfterValidator(_addressable),
]
GalleryName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit.",
    ),
]


_NAMES = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MOST_GALLERIES = 10
GalleryNames = Annotated[
    str,
    Field(
        pattern=rf"^{_NAMES}(,{_NAMES}){{0,{MOST_GALLERIES - 1}}}$",
        description=f"1 to {MOST_GALLERIES} names of different galleries, with commas between.",
    ),
]


# No control characters, and none that end a line or turn the text beside them around.
_NOT_IN_A_NAME = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
# U+FEFF is spelt out: JSON Schema's `\s` holds it, and this one's does not.
_NAME = rf"^[^\s\ufeff{_NOT_IN_A_NAME}][^{_NOT_IN_A_NAME}]*$"


def _a_name(value: str) -> str:
    """Compose accents, so that what looks the same is the same."""
    name = unicodedata.normalize("NFC", value)
    if len(name) > LONGEST_DISPLAY_NAME:
        raise ValueError(f"must be at most {LONGEST_DISPLAY_NAME} characters")
    if not re.fullmatch(_NAME, name) or not storable(name):
        raise ValueError("must begin with no space and have no control characters")
    return name


DisplayName = Annotated[
    str,
    AfterValidator(_a_name),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": LONGEST_DISPLAY_NAME,
            "pattern": _NAME,
            "description": "What people call the person, in any script; it is kept in NFC.",
        }
    ),
]


def _a_number(value: object) -> object:
    """Refuse true, which would be taken for one day, and digits in a text."""
    if isinstance(value, bool | str):
        raise ValueError("must be a number of days")
    return value


MaxAgeDays = Annotated[
    int,
    Field(
        ge=1,
        le=36_500,
        description="Days after its enrolment at which a sequence is erased by itself.",
    ),
    BeforeValidator(_a_number),
]
ViewField = Annotated[
    str,
    Field(
        min_length=1,
        max_length=_LONGEST_TEXT,
        description="From where the walk is filmed, as the metadata of those enrolled say it.",
    ),
]
ThresholdField = Annotated[
    float,
    Field(
        ge=-1,
        le=1,
        allow_inf_nan=False,
        description="Similarity from which on two walks count as one person's, -1 to 1.",
    ),
]


def _with_a_date(value: object) -> object:
    """Refuse bare numbers, which would be taken for seconds since 1970."""
    if not isinstance(value, str) or re.match(r"\d{4}-\d{2}-\d{2}", value) is None:
        raise ValueError("must be a date and time with a zone, such as 2026-11-01T00:00:00Z")
    return value


def _in_utc(value: datetime) -> datetime:
    """Refuse the first and last hours of the calendar, which UTC does not have in every zone."""
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must be a time that there is in UTC") from error


UtcTime = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Moment = Annotated[UtcTime, BeforeValidator(_with_a_date)]

PRINTABLE = rf"^( |[^\p{{C}}\p{{Z}}]){{1,{_LONGEST_NAME}}}$"
_SCALAR_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": ["boolean", "null"]},
        {"type": "number", "minimum": -_LARGEST_NUMBER, "maximum": _LARGEST_NUMBER},
        {"type": "string", "maxLength": _LONGEST_TEXT, "pattern": r"^[^\x00]*$"},
    ]
}
METADATA_SCHEMA: dict[str, Any] = {
    "type": "object",
    "maxProperties": _MOST_FIELDS,
    "propertyNames": {"pattern": PRINTABLE},
    "additionalProperties": _SCALAR_SCHEMA,
}
"""What `parse_metadata` takes, as JSON Schema."""
FILTER_SCHEMA: dict[str, Any] = {
    **METADATA_SCHEMA,
    "additionalProperties": {
        "anyOf": [
            *_SCALAR_SCHEMA["anyOf"],
            {
                "type": "array",
                "minItems": 1,
                "maxItems": _MOST_VALUES,
                "items": _SCALAR_SCHEMA,
            },
        ]
    },
}
"""What `parse_filter` takes."""


def json_in_a_string(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a form field that holds JSON."""
    return {
        "contentMediaType": "application/json",
        "contentSchema": schema,
        "maxLength": MAX_METADATA_BYTES,
    }


Cursor = Annotated[
    str,
    Field(
        max_length=512,
        description="`next_cursor` of the page before, unchanged.",
        json_schema_extra={"format": "cursor"},
    ),
]


def parse_metadata(text: str | None) -> Metadata:
    """Metadata from a form field: a flat JSON object; `Invalid` otherwise. None is empty."""
    return {} if text is None else check_metadata(_object("metadata", text))


def enrolled_metadata(value: dict[str, Any]) -> Metadata:
    """The same of what came as JSON itself, as `parse_metadata` takes it from a form."""
    return parse_metadata(json.dumps(check_metadata(value), ensure_ascii=False))


def check_metadata(value: dict[str, Any]) -> Metadata:
    """Refuse, as `Invalid`, what is not a flat object of reasonable scalars."""
    _check_names("metadata", value)
    return {name: _scalar(f"metadata.{name}", item) for name, item in value.items()}


def parse_filter(text: str | None) -> Filter | None:
    """A filter from a form field: names to a scalar or a list of scalars, any of which will do."""
    if text is None:
        return None
    value = _object("filter", text)
    _check_names("filter", value)
    return {
        name: _any_of(f"filter.{name}", item)
        if isinstance(item, list)
        else _scalar(f"filter.{name}", item)
        for name, item in value.items()
    }


def encode_cursor(key: str | None) -> str | None:
    """An opaque cursor for the key after which the next page starts."""
    return None if key is None else base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str | None:
    """Undo `encode_cursor`; `Invalid` for what it did not make."""
    if cursor is None:
        return None
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        key = ""
    if not key or "\0" in key or encode_cursor(key) != cursor:
        raise Invalid(
            "Take `cursor` from the `next_cursor` of the page before, unchanged.",
            Reason("cursor", "invalid"),
            slug="invalid-field",
        )
    return key


def _object(where: str, text: str) -> dict[str, Any]:
    if len(text) > MAX_METADATA_BYTES:
        raise _refused(where, f"is longer than {MAX_METADATA_BYTES} characters")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise _refused(where, "is nested too deeply") from error
    except ValueError as error:
        raise _refused(where, 'must be a JSON object, such as {"view": "090"}') from error
    if not isinstance(value, dict):
        raise _refused(where, 'must be a JSON object, such as {"view": "090"}')
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_names(where: str, value: dict[str, Any]) -> None:
    if len(value) > _MOST_FIELDS:
        raise _refused(where, f"has more than {_MOST_FIELDS} fields")
    for name in value:
        if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
            raise _refused(
                where, f"has a name that is not 1 to {_LONGEST_NAME} printable characters"
            )


def _any_of(where: str, values: list[Any]) -> tuple[Scalar, ...]:
    if not 1 <= len(values) <= _MOST_VALUES:
        raise _refused(where, f"must list 1 to {_MOST_VALUES} values")
    return tuple(_scalar(f"{where}[{position}]", value) for position, value in enumerate(values))


def _scalar(where: str, value: Any) -> Scalar:
    match value:
        case bool() | None:
            return value
        case str() if len(value) <= _LONGEST_TEXT and storable(value):
            return value
        case int() | float() if abs(value) <= _LARGEST_NUMBER:  # so neither infinite nor NaN
            return value
        case list() | dict():
            raise _refused(where, "must be text, a number, true, false or null")
        case _:
            raise _refused(where, "is too long, too large or holds characters that cannot be kept")


def storable(text: str) -> bool:
    """Whether every database keeps the text: no NUL, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _refused(where: str, reason: str) -> Invalid:
    shown = where if len(where) <= 100 and where.isprintable() else where[:99] + "…"
    return Invalid(f"{shown} {reason}.", Reason(shown, reason), slug="invalid-field")

"""A hash chain that shows whether the record was changed: each hash covers the line before.

The hash does not cover a subject's id but a commitment to it: SHA-256 of a random salt and the id.
Erasing a person removes id and salt; the commitment then tells nothing and the chain still holds.
Another line says from how many lines they were removed. It does not say from which, because that
would show which searches found the same person.

Imports only the standard library, so this file alone can check an exported record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

BEGINNING: Final = "0" * 64
"""What the first line of a record names as the hash before it."""

FORGETTING: Final = "forget_subjects"
"""The action of a line that says of how many lines before it the subjects were taken away."""

_NOT_HASHED = frozenset({"hash", "subject_id", "salt"})


class Broken(Exception):
    """The record was changed; the text says at which line."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was checked; `first` and `last` are numbers of lines, None if the record is empty."""

    lines: int
    first: int | None
    last: int | None
    hash: str | None


def commitment(subject_id: str, salt: str) -> str:
    """Return the commitment to a subject: SHA-256, in hexadecimal, of the salt and the id."""
    return hashlib.sha256(f"{salt} {subject_id}".encode()).hexdigest()


def line_hash(line: Mapping[str, Any]) -> str:
    """Return the hash of a line, which has the hash of the line before in `previous`."""
    content = {name: value for name, value in line.items() if name not in _NOT_HASHED}
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def canonical(value: object) -> str:
    """Return a value as canonical JSON: sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def check(lines: Iterable[Mapping[str, Any]]) -> Checked:
    """Check that lines follow each other unchanged; raises `Broken`.

    They may begin anywhere, and the last ones may be missing: that only shows against a hash that
    was noted elsewhere. Every line without its subject must be accounted for by a line after it; so
    lines up to a time in the past may seem to lack one. Where older lines are missing, one that was
    blanked may pass for one of theirs.
    """
    count = 0
    blank = 0  # lines without their subject that nothing accounts for so far
    first = None
    before: Mapping[str, Any] | None = None
    for line in lines:
        number = line["number"]
        if before is None:
            first = number
        elif number != before["number"] + 1 or line["previous"] != before["hash"]:
            raise Broken(f"line {number} does not follow line {before['number']}")
        if line_hash(line) != line["hash"]:
            raise Broken(f"line {number} was changed")
        if line["subject_id"] is not None and (
            line["salt"] is None
            or commitment(line["subject_id"], line["salt"]) != line["subject_commitment"]
        ):
            raise Broken(f"line {number} names another subject than it did")
        if line["subject_id"] is None and line["salt"] is not None:
            raise Broken(f"line {number} names nobody any more, and no erasure does it like that")
        if line["subject_id"] is None and line["subject_commitment"] is not None:
            blank += 1
        if line["action"] == FORGETTING:
            blank = max(0, blank - int(line["details"]["lines"]))
        before = line
        count += 1
    if before is None:
        return Checked(0, None, None, None)
    if blank:
        raise Broken(
            f"{blank} more of the lines name nobody any more than erasures account for; the "
            "record cannot tell which"
        )
    return Checked(count, first, before["number"], before["hash"])

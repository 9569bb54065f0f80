"""Entries of the audit record that more than one room makes; `service.http.recorded` has the rest.

An entry names the subject that the action is about, and nobody if the action erases somebody. It
has no silhouettes, embeddings, metadata or names of files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from service.access.audit.chain import FORGETTING

if TYPE_CHECKING:  # a command that records one line need not load what it does not use
    from service.access.keys import ApiKey


class _Model(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a key, anyone (a service without keys), a command on the machine, or nobody."""

    kind: Literal["key", "anyone", "command", "service"]
    key_id: str | None = None
    key_name: str | None = None

    @classmethod
    def of(cls, key: ApiKey | None) -> Self:
        """Return the caller of a request as an actor."""
        return cls("anyone") if key is None else cls("key", key.key_id, key.name)


COMMAND = Actor("command")
SERVICE = Actor("service")


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened, in which gallery, to whom; `details` is JSON."""

    action: str
    gallery: str | None = None
    subject_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def forgotten(gallery: str, lines: int) -> Entry:
    """Return the entry for erased subjects: how many lines named them, and not which lines."""
    return Entry(FORGETTING, gallery, None, {"lines": lines})


def model_change(
    action: Literal["activate_model", "rollback_model"],
    gallery: str,
    job_id: str,
    *,
    old: _Model,
    new: _Model,
) -> Entry:
    """Return the entry for a gallery that is searched with another model from now on."""
    return Entry(
        action, gallery, None, {"job_id": job_id, "from": model_named(old), "to": model_named(new)}
    )


def key_change(action: Literal["add_key", "revoke_key"], key: ApiKey) -> Entry:
    """Return the entry for a key that was made or revoked, without its secret."""
    details = {"key_id": key.key_id, "name": key.name, "scopes": sorted(key.scopes)}
    if key.expires_at is not None:
        details["expires_at"] = key.expires_at.isoformat(timespec="seconds")
    return Entry(action, details=details)


def model_named(model: _Model) -> dict[str, str]:
    """Return a model as entries name it."""
    return {"name": model.name, "digest": model.digest}

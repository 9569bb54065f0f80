"""A line that accounts for the subjects that were forgotten before there were such lines."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

from service.storage.database import UtcDateTime, now

revision = "0002_forgetting"
down_revision = "0001_audit"

_NAMES = (
    "number", "action", "actor", "key_id", "key_name", "request_id", "gallery", "subject_id",
    "salt", "subject_commitment", "details", "previous", "hash",
)  # fmt: skip
_AUDIT = sa.table("audit", sa.column("at", UtcDateTime), *(sa.column(name) for name in _NAMES))


def upgrade() -> None:
    """Add it, if anybody was forgotten; nobody can say any more whether that was an erasure."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE audit IN EXCLUSIVE MODE"))
    forgotten = connection.scalar(
        sa.select(sa.func.count()).where(
            _AUDIT.c.subject_commitment.is_not(None), _AUDIT.c.subject_id.is_(None)
        )
    )
    if not forgotten:
        return
    last = connection.execute(
        sa.select(_AUDIT.c.number, _AUDIT.c.hash).order_by(_AUDIT.c.number.desc()).limit(1)
    ).one()
    at, details = now(), {"lines": forgotten, "before": revision}
    line = dict.fromkeys(_NAMES) | {
        "number": last.number + 1,
        "at": at.isoformat(),
        "action": "forget_subjects",
        "actor": "service",
        "details": details,
        "previous": last.hash,
    }
    kept = {"at": at, "details": _canonical(details), "hash": _hash(line)}
    connection.execute(sa.insert(_AUDIT), {**line, **kept})


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _hash(line: dict[str, object]) -> str:
    # As `service.access.audit.chain` did then: a migration does not change with it.
    hashed = {name: line[name] for name in line if name not in {"hash", "subject_id", "salt"}}
    return hashlib.sha256(_canonical(hashed).encode()).hexdigest()


def downgrade() -> None:
    """Leave it: lines are not taken away."""

"""The audit record, and the triggers that keep it append-only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.storage.database import UtcDateTime

revision = "0001_audit"
down_revision = None

_FOREVER = (
    "number", "at", "action", "actor", "key_id", "key_name", "request_id", "gallery",
    "subject_commitment", "details", "previous", "hash",
)  # fmt: skip
_NEITHER_CHANGED = " AND ".join(f"NEW.{name} IS NOT DISTINCT FROM OLD.{name}" for name in _FOREVER)
_ONLY_FORGETS = f"NEW.subject_id IS NULL AND NEW.salt IS NULL AND {_NEITHER_CHANGED}"
_YOUNGEST_DAYS = 30  # that may be deleted, see GAITID_AUDIT_MAX_AGE_DAYS

_SQLITE = (
    "CREATE TRIGGER audit_only_grows BEFORE INSERT ON audit "
    "WHEN NEW.number <= (SELECT max(number) FROM audit) "
    "BEGIN SELECT RAISE(ABORT, 'the audit record is append-only'); END",
    "CREATE TRIGGER audit_only_forgets BEFORE UPDATE ON audit "
    f"WHEN NOT ({_ONLY_FORGETS.replace('IS NOT DISTINCT FROM', 'IS')}) "
    "BEGIN SELECT RAISE(ABORT, 'the audit record is append-only'); END",
    "CREATE TRIGGER audit_keeps_what_is_young BEFORE DELETE ON audit "
    f"WHEN OLD.at > datetime('now', '-{_YOUNGEST_DAYS} days') "
    "BEGIN SELECT RAISE(ABORT, 'the audit record is append-only'); END",
)
_POSTGRESQL = (
    "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    f"IF TG_OP = 'UPDATE' THEN IF {_ONLY_FORGETS} THEN RETURN NEW; END IF; "
    f"ELSIF TG_OP = 'DELETE' THEN IF OLD.at <= now() - interval '{_YOUNGEST_DAYS} days' "
    "THEN RETURN OLD; END IF; END IF; "
    "RAISE EXCEPTION 'the audit record is append-only'; END $$",
    "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit "
    "FOR EACH ROW EXECUTE FUNCTION audit_append_only()",
    "CREATE TRIGGER audit_not_emptied BEFORE TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
)


def upgrade() -> None:
    """Create the table and its triggers."""
    op.create_table(
        "audit",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(16), nullable=False),
        sa.Column("key_id", sa.String(36)),
        sa.Column("key_name", sa.String(128)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("gallery", sa.String(64)),
        sa.Column("subject_id", sa.String(128)),
        sa.Column("salt", sa.String(32)),
        sa.Column("subject_commitment", sa.String(64)),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_subject", "audit", ["gallery", "subject_id"])
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    """Drop the table, and its triggers with it."""
    op.drop_table("audit")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION audit_append_only()")

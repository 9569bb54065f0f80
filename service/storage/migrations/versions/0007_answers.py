"""Kept answers that are found by whom they name and by their age; keys that expire.

Answers kept before are dropped: they live for a day, and whom they name nobody wrote down. A client
that sends one of those requests again has it carried out again (the same walk again is
`already_enrolled`).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.storage.database import UtcDateTime

revision = "0007_answers"
down_revision = "0006_access"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables anew, and add the column."""
    op.drop_table("idempotency")
    op.create_table(
        "idempotency",
        sa.Column("number", _NUMBER, primary_key=True),
        sa.Column("key_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(36), nullable=False),
        sa.Column("expires_at", UtcDateTime, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", sa.JSON, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("ix_idempotency_expires", "idempotency", ["expires_at"])
    op.create_table(
        "idempotency_name",
        sa.Column("name_hash", sa.BigInteger, primary_key=True),
        sa.Column(
            "answer",
            _NUMBER,
            sa.ForeignKey("idempotency.number", ondelete="CASCADE"),
            primary_key=True,
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_idempotency_name_answer", "idempotency_name", ["answer"])
    op.add_column("api_key", sa.Column("expires_at", UtcDateTime))


def downgrade() -> None:
    """As it was, without the answers; keys that expire are revoked, for nobody looks at it then."""
    op.execute("UPDATE api_key SET revoked_at = expires_at WHERE revoked_at IS NULL")
    op.drop_column("api_key", "expires_at")
    op.drop_table("idempotency_name")
    op.drop_table("idempotency")
    op.create_table(
        "idempotency",
        sa.Column("key_hash", sa.String(64), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(36), nullable=False),
        sa.Column("held_until", UtcDateTime, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", sa.JSON, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])

"""A key's own rate; which encryption key silhouettes and embeddings are sealed with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.storage.database import UtcDateTime

revision = "0006_access"
down_revision = "0005_retention"


def upgrade() -> None:
    """Add the columns (empty: the default rate, not encrypted) and the table of keys in use."""
    op.add_column("api_key", sa.Column("rate", sa.String(32)))
    for table in ("sequence", "embedding"):
        op.add_column(table, sa.Column("key_id", sa.String(16)))
        op.create_index(f"ix_{table}_key", table, ["key_id"])
    op.create_table(
        "encryption_key",
        sa.Column("key_id", sa.String(16), primary_key=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )


def downgrade() -> None:
    """Drop them; what is encrypted stays so, and cannot be read without its key's name."""
    op.drop_table("encryption_key")
    for table in ("embedding", "sequence"):
        op.drop_index(f"ix_{table}_key", table)
        op.drop_column(table, "key_id")
    op.drop_column("api_key", "rate")

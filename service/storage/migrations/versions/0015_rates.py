"""Token buckets of rates that hold for several servers together: on PostgreSQL alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015_rates"
down_revision = "0014_workers"


def upgrade() -> None:
    """Add the table, empty: every bucket is full. It is not worth a write-ahead log."""
    if op.get_bind().dialect.name == "sqlite":
        return
    op.create_table(
        "rate_bucket",
        sa.Column("who", sa.String(64), primary_key=True),
        sa.Column("tokens", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("full_at", sa.Double, nullable=False),
        sa.Column("allowed", sa.Boolean, nullable=False),
        prefixes=["UNLOGGED"],
        postgresql_with={"fillfactor": 50},
    )


def downgrade() -> None:
    """Remove it."""
    op.execute("DROP TABLE IF EXISTS rate_bucket")

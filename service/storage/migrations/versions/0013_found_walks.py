"""Walks that jobs found in footage, for as long as they may be enrolled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013_found_walks"
down_revision = "0012_scene"


def upgrade() -> None:
    """Add the table, empty."""
    op.create_table(
        "found_walk",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("silhouettes", sa.LargeBinary, nullable=False),
        sa.Column("key_id", sa.String(16)),
        sa.Column("quality", sa.JSON, nullable=False),
        sa.Column("origin", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_found_walk_job", "found_walk", ["job_id"])
    op.create_index("ix_found_walk_key", "found_walk", ["key_id"])


def downgrade() -> None:
    """Remove it; jobs still list the walks, and they cannot be enrolled."""
    op.drop_table("found_walk")

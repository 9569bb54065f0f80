"""Walks that were erased, until the key of each is ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017_ended_walks"
down_revision = "0016_index_collections"


def upgrade() -> None:
    """Add the table, empty."""
    op.create_table("ended_walk", sa.Column("walk_id", sa.String(36), primary_key=True))


def downgrade() -> None:
    """Remove it."""
    op.drop_table("ended_walk")

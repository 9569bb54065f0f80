"""Collections of a vector database that galleries are searched in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016_index_collections"
down_revision = "0015_rates"


def upgrade() -> None:
    """Add the table, empty."""
    op.create_table(
        "index_collection",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("serves", sa.String(160), unique=True),
        sa.Column("gallery_id", sa.String(36), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scene", sa.String(36)),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("written", sa.BigInteger, nullable=False),
        sa.Column("erased", sa.BigInteger, nullable=False),
        sa.Column("holds_deleted", sa.Boolean, nullable=False),
        sa.Column("writer", sa.String(36)),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("stale_at", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_index_collection_gallery", "index_collection", ["gallery_id"])


def downgrade() -> None:
    """Remove it; collections stay in the vector database until somebody drops them."""
    op.drop_table("index_collection")

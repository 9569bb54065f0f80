"""A checksum for each embedding that is not encrypted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008_checksums"
down_revision = "0007_answers"


def upgrade() -> None:
    """Add the column, empty: a reindex fills it, by making those embeddings anew."""
    op.add_column("embedding", sa.Column("checksum", sa.BigInteger))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("embedding", "checksum")

"""How long a gallery keeps its sequences, and whom models were trained on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_retention"
down_revision = "0004_protection"


def upgrade() -> None:
    """Add the column, the index that finds what is too old, and the table."""
    op.add_column("gallery", sa.Column("max_age_days", sa.Integer))
    op.create_index("ix_sequence_gallery_created", "sequence", ["gallery_id", "created_at"])
    op.create_table(
        "trained_subject",
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("subject_hash", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(16), nullable=False),
    )
    op.create_index("ix_trained_subject_hash", "trained_subject", ["subject_hash"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("trained_subject")
    op.drop_index("ix_sequence_gallery_created", "sequence")
    op.drop_column("gallery", "max_age_days")

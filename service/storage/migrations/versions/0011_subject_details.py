"""A subject's display name, beside the id that programs use, and metadata of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_subject_details"
down_revision = "0010_growth"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; nobody has a name or metadata yet."""
    op.add_column("subject", sa.Column("display_name", sa.Text))
    op.add_column("subject", sa.Column("metadata", sa.JSON))


def downgrade() -> None:
    """Remove them."""
    op.drop_column("subject", "metadata")
    op.drop_column("subject", "display_name")

"""What people call a subject, beside the id that programs use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_display_names"
down_revision = "0010_growth"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; nobody has a name yet."""
    op.add_column("subject", sa.Column("display_name", sa.Text))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("subject", "display_name")

"""Workers and their labels, what jobs need, and the trace that a job belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014_workers"
down_revision = "0013_found_walks"


def upgrade() -> None:
    """Add them; the jobs that there are need nothing."""
    op.create_table(
        "worker",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.add_column("job", sa.Column("needs", sa.Text, nullable=False, server_default="{}"))
    op.add_column("job", sa.Column("traceparent", sa.String(64)))


def downgrade() -> None:
    """Remove them; any worker then takes any job."""
    op.drop_column("job", "traceparent")
    op.drop_column("job", "needs")
    op.drop_table("worker")

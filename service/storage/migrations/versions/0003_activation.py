"""Which model each gallery is searched with, which one before, and when its indexes began anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_activation"
down_revision = "0002_jobs"


def upgrade() -> None:
    """Add the columns; every gallery goes on with the deployment's model."""
    for column in (
        sa.Column("active_model", sa.String(64)),
        sa.Column("active_digest", sa.String(64)),
        sa.Column("previous_model", sa.String(64)),
        sa.Column("previous_digest", sa.String(64)),
        sa.Column("previous_operating_point", sa.JSON(none_as_null=True)),
        sa.Column("index_epoch", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("gallery", column)


def downgrade() -> None:
    """Drop the columns."""
    for name in (
        "index_epoch",
        "previous_operating_point",
        "previous_digest",
        "previous_model",
        "active_digest",
        "active_model",
    ):
        op.drop_column("gallery", name)

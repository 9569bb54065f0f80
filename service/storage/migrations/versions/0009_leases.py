"""Leases of jobs by number and by how often they were renewed: no clock is in them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.storage.database import UtcDateTime

revision = "0009_leases"
down_revision = "0008_checksums"


def upgrade() -> None:
    """Add both; a job that is running then counts as lost once its lease stays unrenewed."""
    for name in ("lease_number", "lease_renewals"):
        op.add_column("job", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    op.drop_column("job", "lease_token")
    op.drop_column("job", "lease_expires_at")


def downgrade() -> None:
    """Bring back the former columns, empty."""
    op.add_column("job", sa.Column("lease_token", sa.String(36)))
    op.add_column("job", sa.Column("lease_expires_at", UtcDateTime))
    for name in ("lease_renewals", "lease_number"):
        op.drop_column("job", name)

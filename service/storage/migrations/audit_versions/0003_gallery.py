"""An index to read a gallery's lines by, in their order."""

from __future__ import annotations

from alembic import op

revision = "0003_gallery"
down_revision = "0002_forgetting"


def upgrade() -> None:
    """Add it."""
    op.create_index("ix_audit_gallery", "audit", ["gallery", "number"])


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_audit_gallery", "audit")

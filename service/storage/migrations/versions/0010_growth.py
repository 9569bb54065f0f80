"""What an erasure looks up: hashes of another key, and the audits whose findings name people."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_growth"
down_revision = "0009_leases"


def upgrade() -> None:
    """Add the column, for every audit that has ended well, and the indexes."""
    op.create_index("ix_trained_subject_key", "trained_subject", ["key_id", "model"])
    op.add_column("job", sa.Column("findings_of", sa.String(64)))
    job = sa.table(
        "job",
        sa.column("type", sa.String),
        sa.column("request", sa.JSON),
        sa.column("result", sa.JSON(none_as_null=True)),
        sa.column("findings_of", sa.String),
    )
    op.execute(
        sa.update(job)
        .where(job.c.type == "audit-gallery", job.c.result.is_not(None))
        .values(findings_of=job.c.request["gallery"].as_string())
    )
    op.create_index("ix_job_findings", "job", ["findings_of"])


def downgrade() -> None:
    """Take them away."""
    op.drop_index("ix_job_findings", "job")
    op.drop_column("job", "findings_of")
    op.drop_index("ix_trained_subject_key", "trained_subject")

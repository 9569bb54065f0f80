"""What enrolment looks up: the same walk by its content, and a gallery's views and conditions."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004_protection"
down_revision = "0003_activation"

_PAGE = 500


def upgrade() -> None:
    """Add the columns, fill them from the metadata, add the indexes."""
    op.add_column("sequence", sa.Column("view", sa.Text))
    op.add_column("sequence", sa.Column("condition", sa.Text))
    _label_everything()
    op.create_index("ix_sequence_gallery_content", "sequence", ["gallery_id", "content_hash"])
    op.create_index("ix_sequence_gallery_coverage", "sequence", ["gallery_id", "view", "condition"])


def downgrade() -> None:
    """Take them away."""
    op.drop_index("ix_sequence_gallery_coverage", "sequence")
    op.drop_index("ix_sequence_gallery_content", "sequence")
    op.drop_column("sequence", "condition")
    op.drop_column("sequence", "view")


def _label_everything() -> None:
    table = sa.table(
        "sequence",
        sa.column("id", sa.String),
        sa.column("metadata", sa.JSON),
        sa.column("view", sa.Text),
        sa.column("condition", sa.Text),
    )
    connection = op.get_bind()
    last = ""
    while rows := connection.execute(
        sa.select(table.c.id, table.c.metadata)
        .where(table.c.id > last)
        .order_by(table.c.id)
        .limit(_PAGE)
    ).all():
        last = rows[-1].id
        for sequence_id, details in rows:
            labels = {name: _label(details.get(name)) for name in ("view", "condition")}
            if any(value is not None for value in labels.values()):
                connection.execute(
                    sa.update(table).where(table.c.id == sequence_id).values(**labels)
                )


def _label(value: Any) -> str | None:
    """As `service.gallery.coverage.label` was when this was written."""
    if value is None or isinstance(value, bool) or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value)

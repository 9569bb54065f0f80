"""The transform by which a gallery under a model is compared, and the sums of who passed there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012_scene"
down_revision = "0011_subject_details"


def upgrade() -> None:
    """Add the tables, empty: every gallery is compared as its model's card says."""
    op.create_table(
        "scene",
        _gallery(),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(36)),
        sa.Column("transform", sa.LargeBinary),
        sa.Column("key_id", sa.String(16)),
        sa.Column("operating_point", sa.JSON(none_as_null=True)),
        sa.Column("plain_operating_point", sa.JSON(none_as_null=True)),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("gain", sa.Double, nullable=False),
        sa.Column("gain_low", sa.Double, nullable=False),
        sa.Column("gain_high", sa.Double, nullable=False),
        sa.Column("fitted_at", sa.DateTime(timezone=True)),
        sa.Column("gallery_subjects", sa.Integer, nullable=False),
        sa.Column("gallery_sequences", sa.Integer, nullable=False),
    )
    op.create_table(
        "scene_cohort",
        _gallery(),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("walks", sa.BigInteger, nullable=False),
        sa.Column("sums", sa.LargeBinary, nullable=False),
        sa.Column("key_id", sa.String(16)),
    )


def downgrade() -> None:
    """Remove them; thresholds of transformed similarities hold for no others."""
    gallery = sa.table(
        "gallery",
        sa.column("operating_point", sa.JSON(none_as_null=True)),
        sa.column("previous_operating_point", sa.JSON(none_as_null=True)),
    )
    for name in ("operating_point", "previous_operating_point"):
        column = gallery.c[name]
        scene = column["scene"].as_string()
        op.execute(sa.update(gallery).where(scene.is_not(None)).values({name: sa.null()}))
    op.drop_table("scene_cohort")
    op.drop_table("scene")


def _gallery() -> sa.Column[str]:
    return sa.Column(
        "gallery_id",
        sa.String(36),
        sa.ForeignKey("gallery.id", ondelete="CASCADE"),
        primary_key=True,
    )

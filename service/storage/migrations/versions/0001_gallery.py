"""Galleries, subjects, sequences, embeddings; API keys; answers kept for idempotency keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.storage.database import UtcDateTime

revision = "0001_gallery"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "gallery",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("operating_point", sa.JSON(none_as_null=True)),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "subject",
        sa.Column(
            "gallery_id",
            sa.String(36),
            sa.ForeignKey("gallery.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("subject_id", sa.String(128), primary_key=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "sequence",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("gallery_id", sa.String(36), nullable=False),
        sa.Column("subject_id", sa.String(128), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("frames", sa.Integer, nullable=False),
        sa.Column("silhouettes", sa.LargeBinary, nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("quality", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["gallery_id", "subject_id"],
            ["subject.gallery_id", "subject.subject_id"],
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_sequence_gallery_revision", "sequence", ["gallery_id", "revision"])
    op.create_index("ix_sequence_gallery_subject", "sequence", ["gallery_id", "subject_id"])
    op.create_table(
        "embedding",
        sa.Column(
            "sequence_id",
            sa.String(36),
            sa.ForeignKey("sequence.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("parts", sa.Integer, nullable=False),
        sa.Column("channels", sa.Integer, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "erased_sequence",
        sa.Column(
            "gallery_id",
            sa.String(36),
            sa.ForeignKey("gallery.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("sequence_id", sa.String(36), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_erased_sequence_revision", "erased_sequence", ["gallery_id", "revision"])
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("revoked_at", UtcDateTime),
    )
    op.create_table(
        "idempotency",
        sa.Column("key_hash", sa.String(64), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(36), nullable=False),
        sa.Column("held_until", UtcDateTime, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", sa.JSON, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])


def downgrade() -> None:
    """Drop the tables."""
    for table in (
        "idempotency",
        "api_key",
        "erased_sequence",
        "embedding",
        "sequence",
        "subject",
        "gallery",
    ):
        op.drop_table(table)

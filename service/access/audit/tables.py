"""The table of the audit record.

With SQLite it has a database of its own: a writer locks the whole file, and a search must not wait
for an enrolment.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.storage.database import UtcDateTime


class AuditTable(DeclarativeBase):
    """Base of the tables in the record's database."""

    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012 - SQLAlchemy reads it by name


class AuditRow(AuditTable):
    """One line. Triggers refuse every change but forgetting a subject and dropping an old line.

    `details` is canonical JSON, kept as text so that its hash can be made again.
    """

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False
    )
    at: Mapped[datetime]
    action: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(16))
    key_id: Mapped[str | None] = mapped_column(String(36))
    key_name: Mapped[str | None] = mapped_column(String(128))
    request_id: Mapped[str | None] = mapped_column(String(64))
    gallery: Mapped[str | None] = mapped_column(String(64))
    subject_id: Mapped[str | None] = mapped_column(String(128))
    salt: Mapped[str | None] = mapped_column(String(32))
    subject_commitment: Mapped[str | None] = mapped_column(String(64))
    details: Mapped[str] = mapped_column(Text)
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_audit_at", "at"),
        Index("ix_audit_subject", "gallery", "subject_id"),
        Index("ix_audit_gallery", "gallery", "number"),
    )

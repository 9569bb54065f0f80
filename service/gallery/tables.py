"""Galleries, subjects, sequences and embeddings in the database: the truth; indexes follow it.

Every change of a gallery raises its `revision` in the transaction that makes the change. A sequence
carries the revision that added it, and `erased_sequence` the one that erased it, so an index that
has applied revision r asks for the changes after r. A correction of a sequence does both.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.storage.database import Table

_ID = String(36)
_DIGEST = String(64)
_KEY = String(16)


class GalleryRow(Table):
    """One gallery. Its id is never used again, so a new gallery of an old name is another one.

    `active_*` null: the deployment's own model; `previous_*` null: nothing to roll back to. Indexes
    of another `index_epoch` are to be built anew.
    """

    __tablename__ = "gallery"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    revision: Mapped[int] = mapped_column(BigInteger)
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    operating_point: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # Sequences that were enrolled longer ago are erased; None keeps them.
    max_age_days: Mapped[int | None]
    active_model: Mapped[str | None] = mapped_column(String(64))
    active_digest: Mapped[str | None] = mapped_column(_DIGEST)
    previous_model: Mapped[str | None] = mapped_column(String(64))
    previous_digest: Mapped[str | None] = mapped_column(_DIGEST)
    previous_operating_point: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    index_epoch: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]


class SubjectRow(Table):
    """One enrolled person, under the client's own id; `display_name` is for people to read."""

    __tablename__ = "subject"

    gallery_id: Mapped[str] = mapped_column(
        ForeignKey("gallery.id", ondelete="CASCADE"), primary_key=True
    )
    subject_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    display_name: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSON(none_as_null=True))
    created_at: Mapped[datetime]


class SequenceRow(Table):
    """One enrolled walk: silhouettes uint8 [s, 64, 64] normalised, as `Sealing` keeps them.

    `view` and `condition` repeat what the metadata says, where an index finds it.
    """

    __tablename__ = "sequence"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    gallery_id: Mapped[str] = mapped_column(_ID)
    subject_id: Mapped[str] = mapped_column(String(128))
    revision: Mapped[int] = mapped_column(BigInteger)
    frames: Mapped[int]
    silhouettes: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    key_id: Mapped[str | None] = mapped_column(_KEY)
    content_hash: Mapped[str] = mapped_column(_DIGEST)
    quality: Mapped[dict[str, Any]] = mapped_column(JSON)
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    view: Mapped[str | None] = mapped_column(Text)
    condition: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]

    __table_args__ = (
        ForeignKeyConstraint(
            ["gallery_id", "subject_id"],
            ["subject.gallery_id", "subject.subject_id"],
            ondelete="CASCADE",
        ),
        Index("ix_sequence_gallery_revision", "gallery_id", "revision"),
        Index("ix_sequence_gallery_subject", "gallery_id", "subject_id"),
        Index("ix_sequence_key", "key_id"),
        Index("ix_sequence_gallery_created", "gallery_id", "created_at"),
        Index("ix_sequence_gallery_content", "gallery_id", "content_hash"),
        Index("ix_sequence_gallery_coverage", "gallery_id", "view", "condition"),
    )


class EmbeddingRow(Table):
    """What one checkpoint made of one sequence: float32 [p, c], as `Sealing` keeps it.

    `checksum` is null where it is encrypted, which has one of its own, and where it was written
    before there was one.
    """

    __tablename__ = "embedding"

    sequence_id: Mapped[str] = mapped_column(
        ForeignKey("sequence.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    parts: Mapped[int]
    channels: Mapped[int]
    vector: Mapped[bytes] = mapped_column(LargeBinary)
    checksum: Mapped[int | None] = mapped_column(BigInteger)
    key_id: Mapped[str | None] = mapped_column(_KEY)

    __table_args__ = (Index("ix_embedding_key", "key_id"),)


class SceneRow(Table):
    """What fitting a gallery's scene transform under one checkpoint came to.

    With a `version` the gallery is compared by the `transform` and decided by `operating_point`,
    which was found with it. Without one it is compared as the card says: the fit was no better, or
    (`fitted_at` null) is still to be made, or was dropped. The counts are of the gallery when a fit
    was last asked for.
    """

    __tablename__ = "scene"

    gallery_id: Mapped[str] = mapped_column(
        ForeignKey("gallery.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    version: Mapped[str | None] = mapped_column(_ID)
    transform: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    key_id: Mapped[str | None] = mapped_column(_KEY)
    operating_point: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # What the gallery is decided by without the transform, or was before.
    plain_operating_point: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    revision: Mapped[int] = mapped_column(BigInteger, default=0)
    gain: Mapped[float] = mapped_column(default=0.0)
    gain_low: Mapped[float] = mapped_column(default=0.0)
    gain_high: Mapped[float] = mapped_column(default=0.0)
    fitted_at: Mapped[datetime | None]
    gallery_subjects: Mapped[int]
    gallery_sequences: Mapped[int]


class SceneCohortRow(Table):
    """Sums of the embeddings of whoever passed, under one checkpoint; nothing of any one walk."""

    __tablename__ = "scene_cohort"

    gallery_id: Mapped[str] = mapped_column(
        ForeignKey("gallery.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    walks: Mapped[int] = mapped_column(BigInteger)
    sums: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[str | None] = mapped_column(_KEY)


class FoundWalkRow(Table):
    """A walk that a job found in footage, not enrolled: silhouettes uint8 [s, 64, 64].

    It goes when it is enrolled, when the job's listing is forgotten, or with whom it was taken for.
    """

    __tablename__ = "found_walk"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(_ID)
    silhouettes: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[str | None] = mapped_column(_KEY)
    quality: Mapped[dict[str, Any]] = mapped_column(JSON)
    origin: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_found_walk_job", "job_id"), Index("ix_found_walk_key", "key_id"))


class EncryptionKeyRow(Table):
    """A key, or a store of walk keys, that something is sealed with, by name; it is elsewhere."""

    __tablename__ = "encryption_key"

    key_id: Mapped[str] = mapped_column(_KEY, primary_key=True)
    created_at: Mapped[datetime]


class EndedWalkRow(Table):
    """A walk that was erased, and whose key is still to be ended."""

    __tablename__ = "ended_walk"

    walk_id: Mapped[str] = mapped_column(_ID, primary_key=True)


class ErasedSequenceRow(Table):
    """That a sequence was erased or corrected, and by which revision last; nothing else of it."""

    __tablename__ = "erased_sequence"

    gallery_id: Mapped[str] = mapped_column(
        ForeignKey("gallery.id", ondelete="CASCADE"), primary_key=True
    )
    sequence_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_erased_sequence_revision", "gallery_id", "revision"),)


class IndexCollectionRow(Table):
    """A collection in the vector database, and how far it follows this one.

    It has what was added up to `revision`, and nothing that was erased up to then, from the moment
    `written` of the vector database's clock on. One process at a time writes it: `writer`, whose
    `beat` rises as long as it lives. `serves` says what it is the collection of; null: it is to be
    dropped. It has no foreign key, so that a gallery's end does not forget what is left to drop.
    """

    __tablename__ = "index_collection"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    serves: Mapped[str | None] = mapped_column(String(160), unique=True)
    gallery_id: Mapped[str] = mapped_column(_ID)
    digest: Mapped[str] = mapped_column(_DIGEST)
    scene: Mapped[str | None] = mapped_column(_ID)
    epoch: Mapped[int]
    revision: Mapped[int] = mapped_column(BigInteger, default=0)
    written: Mapped[int] = mapped_column(BigInteger, default=0)
    erased: Mapped[int] = mapped_column(BigInteger, default=0)  # revision that deletions reach
    holds_deleted: Mapped[bool] = mapped_column(default=False)  # until it is compacted
    writer: Mapped[str | None] = mapped_column(_ID)
    beat: Mapped[int] = mapped_column(BigInteger, default=0)
    stale_at: Mapped[datetime | None]  # when it was first seen that nothing is searched in it

    __table_args__ = (Index("ix_index_collection_gallery", "gallery_id"),)

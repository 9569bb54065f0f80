"""What the gallery takes in and gives back: frozen records, no SQL in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scalar = str | int | float | bool | None
Metadata = dict[str, Scalar]
Silhouettes = NDArray[np.uint8]  # [s, 64, 64]
Embedding = NDArray[np.float32]  # [p, c]


@dataclass(frozen=True, slots=True)
class SequenceQuality:
    """How good a sequence is: score in [0, 1] and codes of what could be better."""

    score: float
    issues: tuple[str, ...] = ()
    frames_in: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A sequence that is about to be enrolled."""

    sequence_id: str
    silhouettes: Silhouettes
    quality: SequenceQuality
    metadata: Metadata
    embedding: Embedding


@dataclass(frozen=True, slots=True)
class ModelPin:
    """A model by its name, and exactly which one of that name."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class GalleryRecord:
    """One gallery and how much is in it."""

    gallery_id: str
    name: str
    revision: int
    subjects: int
    sequences: int
    metadata: Metadata
    operating_point: dict[str, Any] | None
    max_age_days: int | None
    created_at: datetime
    active: ModelPin | None = None  # None: the deployment's own
    previous: ModelPin | None = None


@dataclass(frozen=True, slots=True)
class SequenceRecord:
    """One enrolled sequence, without its silhouettes."""

    sequence_id: str
    gallery: str
    subject_id: str
    frames: int
    quality: SequenceQuality
    metadata: Metadata
    content_hash: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SubjectRecord:
    """One subject and how many sequences are enrolled."""

    gallery: str
    subject_id: str
    display_name: str | None
    sequences: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class FollowedSequence:
    """What an index needs of a sequence; `embedding` is None where this checkpoint has none yet."""

    sequence_id: str
    subject_id: str
    metadata: Metadata
    embedding: Embedding | None


@dataclass(frozen=True, slots=True)
class Changes:
    """What came to a gallery and what went since a revision, up to `revision`.

    A sequence that was corrected is in both: what was known of it goes first.
    """

    revision: int
    added: tuple[FollowedSequence, ...]
    erased: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """What an erasure took away, and what it could not.

    Attributes:
        models: names of the models that learned from an erased subject.
        jobs: ids of the jobs that were cancelled because they held walks of the gallery.
    """

    receipt_id: str
    gallery: str
    subject_id: str | None
    subjects: int
    sequence_ids: tuple[str, ...]
    embeddings: int
    models: tuple[str, ...]
    jobs: tuple[str, ...]
    erased_at: datetime

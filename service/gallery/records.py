"""What the gallery takes in and gives back: frozen records, no SQL in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.card import ModelReference
from models.footage.upload import Origin
from models.silhouettes.types import Quality

Scalar = str | int | float | bool | None
Metadata = dict[str, Scalar]
Silhouettes = NDArray[np.uint8]  # [s, 64, 64]
Embedding = NDArray[np.float32]  # [p, c]
Progress = Callable[[int, int], None]
"""Told how many sequences, or rows, are done, of how many."""


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk that was decoded and embedded.

    Attributes:
        name: what to call it in an error.
        silhouettes: uint8 [s, 64, 64].
        quality: the judgement on it.
        embedding: float32 [p, c].
        origin: where in footage it was; None if silhouettes were sent.
    """

    name: str
    silhouettes: Silhouettes
    quality: Quality
    embedding: Embedding
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class FittedScene:
    """What the newest fit of a gallery's scene transform came to, under a checkpoint.

    Attributes:
        digest: of the checkpoint.
        used: whether a transform is in use.
        fitted_at: when.
        revision: of the gallery, of which it was fitted.
        gain: in how often people who took no part are told apart, see `SceneFit`.
        interval: of the gain.
    """

    digest: str
    used: bool
    fitted_at: datetime
    revision: int
    gain: float
    interval: tuple[float, float]


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
    active: ModelReference | None = None  # None: the deployment's own
    previous: ModelReference | None = None
    scenes: tuple[FittedScene, ...] = ()  # one for each model that it was fitted under


@dataclass(frozen=True, slots=True)
class SequenceRecord:
    """One enrolled sequence, without its silhouettes."""

    sequence_id: str
    gallery: str
    subject_id: str
    frames: int
    quality: Quality
    metadata: Metadata
    content_hash: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SubjectRecord:
    """One subject and how many sequences are enrolled."""

    gallery: str
    subject_id: str
    display_name: str | None
    metadata: Metadata
    sequences: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Description:
    """What is said of a sequence: its metadata with its subject's over it, and whose it is."""

    subject_id: str
    display_name: str | None
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class AddedSequence:
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
    added: tuple[AddedSequence, ...]
    erased: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """What an erasure took away, and what it could not.

    Attributes:
        models: names of the models that learned from an erased subject.
        jobs: ids of the jobs that were cancelled because they held walks of the gallery.
        scene_dropped: whether a transform that those erased had a share in was dropped.
        vectors: what a vector database has of them: `deleted`, which it compacts in its own time;
            `pending`, while it could not be reached or is being written; None: there is none.
        traces_cleared: whether the database was rid of what deleted rows leave in it, too.
        keys: `ended`, if no copy of what was sealed of them can be read any more; `pending`, while
            the keys' store could not be reached or still has traces; None: they had none of their
            own.
    """

    receipt_id: str
    gallery: str
    subject_id: str | None
    subjects: int
    sequence_ids: tuple[str, ...]
    embeddings: int
    models: tuple[str, ...]
    jobs: tuple[str, ...]
    scene_dropped: bool
    erased_at: datetime
    vectors: Literal["deleted", "pending"] | None = None
    traces_cleared: bool = False
    keys: Literal["ended", "pending"] | None = None

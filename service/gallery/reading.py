"""Read what checkpoints made of a whole gallery, or of some of its subjects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from service.gallery.operating_point import OperatingPoint
from service.gallery.scenes import Scene, scene_in
from service.gallery.sealing import ErasedWalk, sealing_of
from service.gallery.store import missing_gallery, sequences_under
from service.gallery.tables import GalleryRow, SequenceRow
from service.storage.database import in_pieces

MOST_SEQUENCES = 4000
"""That are compared: with 16 x 256 numbers each under two checkpoints, half a gigabyte."""

_PIECE = 512  # sequences that are read at once
_SUBJECTS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class EmbeddedSequences:
    """What one checkpoint made of n sequences, in order of their ids.

    Attributes:
        sequence_ids: n of them.
        subject_ids: whose each is, n.
        quality: of each, as its row keeps it, n.
        embeddings: float32 [n, p, c]; [0, 1, 1] of none.
        missing: how many more sequences there are that the checkpoint has not embedded.
    """

    sequence_ids: list[str]
    subject_ids: list[str]
    quality: list[dict[str, Any]]
    embeddings: NDArray[np.float32]
    missing: int

    @property
    def total(self) -> int:
        """How many sequences there are, embedded or not."""
        return len(self.sequence_ids) + self.missing

    def subjects(self) -> tuple[list[str], NDArray[np.int64]]:
        """The subjects' ids in their order, and the position of each sequence's among them [n]."""
        names, codes = np.unique(np.asarray(self.subject_ids, np.str_), return_inverse=True)
        return names.tolist(), codes.astype(np.int64)


@dataclass(frozen=True, slots=True)
class WholeGallery:
    """One state of a gallery under one checkpoint, and the scene transform that it uses."""

    gallery_id: str
    revision: int  # or a later one
    operating_point: OperatingPoint | None
    scene: Scene | None
    sequences: EmbeddedSequences


@dataclass(frozen=True, slots=True)
class PairedEmbeddings:
    """Embeddings [n, p, c] of n sequences under two checkpoints, and whose each is [n]."""

    new: NDArray[np.float32]
    old: NDArray[np.float32]
    subjects: NDArray[np.int64]


def read_gallery(
    engine: Engine, gallery: str, digest: str, *, with_scene: bool = True
) -> WholeGallery:
    """Everything that a checkpoint made of a gallery, as of one moment.

    Raises `NotFound` for a missing gallery, and what `Sealing` raises.
    """
    with Session(engine) as session:
        row = session.execute(
            select(GalleryRow.id, GalleryRow.revision, GalleryRow.operating_point).where(
                GalleryRow.name == gallery
            )
        ).one_or_none()
        if row is None:
            raise missing_gallery(gallery)
        gallery_id, revision, point = row
        scene = scene_in(session, gallery_id, digest) if with_scene else None
    sequences = _read(engine, gallery_id, digest)
    return WholeGallery(gallery_id, revision, OperatingPoint.of(point), scene, sequences)


def _read(
    engine: Engine, gallery_id: str, digest: str, subjects: Sequence[str] | None = None
) -> EmbeddedSequences:
    """All of a gallery's sequences, or these subjects', in one statement: no half an enrolment."""
    query = (
        sequences_under(digest, SequenceRow.quality)
        .where(SequenceRow.gallery_id == gallery_id)
        .order_by(SequenceRow.id)
    )
    if subjects is not None:
        query = query.where(SequenceRow.subject_id.in_(subjects))
    sealing = sealing_of(engine)
    ids: list[str] = []
    whose: list[str] = []
    quality: list[dict[str, Any]] = []
    vectors = bytearray()  # grows in place: the embeddings are in memory once
    shape, missing = (1, 1), 0
    with Session(engine) as session:
        for row in session.execute(query, execution_options={"yield_per": _PIECE}):
            kept = row.EmbeddingRow
            if kept is None:
                missing += 1
                continue
            try:
                vectors += sealing.embedding(kept).astype("<f4").tobytes()
            except ErasedWalk:  # since the statement began
                continue
            shape = (kept.parts, kept.channels)
            ids.append(row.id)
            whose.append(row.subject_id)
            quality.append(row.quality)
    embeddings = np.frombuffer(vectors, "<f4").reshape(len(ids), *shape)
    return EmbeddedSequences(ids, whose, quality, embeddings, missing)


def drawn_subjects(
    engine: Engine, gallery_id: str, *, among: Callable[[str], bool] = lambda _: True
) -> list[str]:
    """Whole subjects with two sequences at least, in an order that their ids' hashes decide.

    As many as have at most `MOST_SEQUENCES` together, of those that `among` accepts.
    """
    query = (
        select(SequenceRow.subject_id, func.count())
        .where(SequenceRow.gallery_id == gallery_id)
        .group_by(SequenceRow.subject_id)
        .having(func.count() >= 2)
    )
    with Session(engine) as session:
        counts = {subject: count for subject, count in session.execute(query) if among(subject)}
    chosen: list[str] = []
    total = 0
    for subject in sorted(counts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        total += counts[subject]
        if total > MOST_SEQUENCES and len(chosen) > 1:
            break
        chosen.append(subject)
    return chosen


def read_pairs(
    engine: Engine, gallery_id: str, subjects: Sequence[str], new: str, old: str
) -> PairedEmbeddings | None:
    """What is stored of these subjects under both digests; None when that is nothing."""
    found: list[tuple[list[str], NDArray[np.float32], NDArray[np.float32]]] = []
    for some in in_pieces(subjects, _SUBJECTS_AT_ONCE):
        ours, theirs = (_read(engine, gallery_id, digest, some) for digest in (new, old))
        _, mine, others = np.intersect1d(
            ours.sequence_ids, theirs.sequence_ids, assume_unique=True, return_indices=True
        )
        if len(mine):
            whose = [ours.subject_ids[row] for row in mine]
            found.append((whose, ours.embeddings[mine], theirs.embeddings[others]))
    if not found:
        return None
    subject_ids = [subject for whose, _, _ in found for subject in whose]
    _, codes = np.unique(subject_ids, return_inverse=True)
    return PairedEmbeddings(
        np.concatenate([mine for _, mine, _ in found]),
        np.concatenate([other for _, _, other in found]),
        codes.astype(np.int64),
    )

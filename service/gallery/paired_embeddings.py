"""What two checkpoints made of the same stored sequences, for comparing the checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, and_, func, select
from sqlalchemy.orm import Session, aliased

from service.gallery.sealing import sealing_of
from service.gallery.store import embedding_of
from service.gallery.tables import EmbeddingRow, SequenceRow

MOST_SEQUENCES = 4000
"""That are compared: with 16 x 256 numbers each under two checkpoints, half a gigabyte."""

_SUBJECTS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class PairedEmbeddings:
    """Embeddings [n, p, c] of n sequences under two checkpoints, and whose each is [n]."""

    new: NDArray[np.float32]
    old: NDArray[np.float32]
    subjects: NDArray[np.int64]


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
    ours, theirs = aliased(EmbeddingRow), aliased(EmbeddingRow)
    sealing = sealing_of(engine)
    found: list[tuple[str, NDArray[np.float32], NDArray[np.float32]]] = []
    with Session(engine) as session:
        for start in range(0, len(subjects), _SUBJECTS_AT_ONCE):
            query = (
                select(SequenceRow.subject_id, ours, theirs)
                .join(ours, and_(ours.sequence_id == SequenceRow.id, ours.digest == new))
                .join(theirs, and_(theirs.sequence_id == SequenceRow.id, theirs.digest == old))
                .where(
                    SequenceRow.gallery_id == gallery_id,
                    SequenceRow.subject_id.in_(subjects[start : start + _SUBJECTS_AT_ONCE]),
                )
                .order_by(SequenceRow.id)
            )
            for subject, mine, other in session.execute(query):
                found.append((subject, embedding_of(mine, sealing), embedding_of(other, sealing)))
            session.expunge_all()
    if not found:
        return None
    _, whose = np.unique([subject for subject, _, _ in found], return_inverse=True)
    return PairedEmbeddings(
        np.stack([mine for _, mine, _ in found]),
        np.stack([other for _, _, other in found]),
        whose.astype(np.int64),
    )

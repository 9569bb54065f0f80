"""For every sequence of a gallery the nearest one of its subject, and of all other subjects.

Exact, in blocks: beside the embeddings memory holds a few blocks of similarities,
never a matrix of all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models import Progress
from models.card import Metric
from models.comparison.several import subject_scores
from models.comparison.similarity import mean_part_cosines, mean_part_distances

NOBODY: Final = -1


@dataclass(frozen=True, slots=True)
class Nearest:
    """The most similar other sequence of each of n, lowest number first among equals.

    Attributes:
        index: its number, int64 [n]; `NOBODY` if there is none.
        similarity: float64 [n]; -inf if there is none.
    """

    index: NDArray[np.int64]
    similarity: NDArray[np.float64]

    @classmethod
    def unknown(cls, count: int) -> Nearest:
        """Before any comparison."""
        return cls(np.full(count, NOBODY, np.int64), np.full(count, -np.inf))

    def update(self, rows: slice, columns: slice, similarities: NDArray[np.floating[Any]]) -> None:
        """Compare sequences `rows` with sequences `columns`: [r, k], -inf where it does not count.

        Columns must come in ascending order, block by block.
        """
        best = similarities.argmax(axis=1)
        value = similarities[np.arange(len(best)), best]
        nearer = value > self.similarity[rows]
        self.index[rows] = np.where(nearer, best + columns.start, self.index[rows])
        self.similarity[rows] = np.where(nearer, value, self.similarity[rows])


def nearest(
    embeddings: NDArray[np.float32],
    subjects: NDArray[np.int64],
    metric: Metric,
    progress: Progress = lambda _done: None,
    *,
    block: int = 512,
) -> tuple[Nearest, Nearest]:
    """The nearest of each sequence among the others of its subject, and among all other subjects'.

    Every pair is compared once.

    Args:
        embeddings: [n, p, c].
        subjects: whose each sequence is [n].
        metric: how the checkpoint compares.
        progress: told how many sequences have met all others, block by block.
        block: how many sequences are compared with as many at once.

    Raises:
        ValueError: the shapes don't fit.
    """
    if embeddings.ndim != 3 or subjects.shape != embeddings.shape[:1]:
        raise ValueError(f"{list(embeddings.shape)} embeddings of {list(subjects.shape)} subjects")
    count = len(subjects)
    own, others = Nearest.unknown(count), Nearest.unknown(count)
    compare = mean_part_cosines if metric == "cosine" else _nearness
    blocks = [slice(at, min(at + block, count)) for at in range(0, count, block)]
    for position, rows in enumerate(blocks):
        for columns in blocks[position:]:
            similarities = compare(embeddings[rows], embeddings[columns])
            same = subjects[rows, None] == subjects[None, columns]
            of_others = np.where(same, -np.inf, similarities)
            of_own = np.where(same, similarities, -np.inf)
            if rows == columns:
                np.fill_diagonal(of_own, -np.inf)  # nobody is compared with itself
            else:
                own.update(columns, rows, of_own.T)
                others.update(columns, rows, of_others.T)
            own.update(rows, columns, of_own)
            others.update(rows, columns, of_others)
        progress(rows.stop)
    return own, others


def nearest_by_all(
    vectors: NDArray[np.float32],
    subjects: NDArray[np.int64],
    progress: Progress = lambda _done: None,
    *,
    block: int = 512,
) -> tuple[Nearest, Nearest]:
    """As `nearest`, where a subject is scored by all of its sequences (`subject_scores`).

    The numbers are of that subject's most similar sequence, the similarities are the scores.

    Args:
        vectors: compared by inner products [n, d].
        subjects: whose each is [n], from 0.
        progress: told how many sequences have met all others, block by block.
        block: how many sequences are compared with all at once.

    Raises:
        ValueError: the shapes don't fit.
    """
    count = len(vectors)
    if vectors.ndim != 2 or subjects.shape != (count,):
        raise ValueError(f"{list(vectors.shape)} vectors of {list(subjects.shape)} subjects")
    own, others = Nearest.unknown(count), Nearest.unknown(count)
    people = int(subjects.max(initial=-1)) + 1
    rows_of = [np.flatnonzero(subjects == subject) for subject in range(people)]
    for start in range(0, count, block):
        rows = np.arange(start, min(start + block, count))
        alike = vectors[rows] @ vectors.T
        scores = subject_scores(alike, subjects, people)
        scores[np.arange(len(rows)), subjects[rows]] = -np.inf
        met = scores.argmax(axis=1)
        for row, similarities, subject, score in zip(
            rows, alike, met, scores.max(axis=1), strict=True
        ):
            mates = rows_of[subjects[row]]
            mates = mates[mates != row]
            if len(mates):
                one = subject_scores(similarities[mates], np.zeros(len(mates), np.int64), 1)[0]
                own.index[row] = mates[similarities[mates].argmax()]
                own.similarity[row] = one
            if np.isfinite(score):
                theirs = rows_of[subject]
                others.index[row] = theirs[similarities[theirs].argmax()]
                others.similarity[row] = score
        progress(int(rows[-1]) + 1)
    return own, others


def _nearness(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    alike: NDArray[np.floating[Any]] = 1 / (1 + mean_part_distances(rows, columns))
    return alike

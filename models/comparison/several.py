"""How alike several walks are: of a subject who is enrolled, and of a person who is asked for.

A probe has seen the subject from some sides: the best walk is the one that was filmed alike, and
strangers filmed alike are near as well; the mean is fair to those of whom one view is enrolled, and
unfair to those enrolled from every side. Half of each was best for both (`benchmarks.scenes`).

Shapes: g gallery entries, n probes of one person, s subjects.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def subject_scores(
    similarities: NDArray[np.floating[Any]], whose: NDArray[np.integer[Any]], subjects: int
) -> NDArray[np.float64]:
    """How alike probes are to subjects: half-way from the mean of a subject's walks to the best.

    Meant for similarities after a scene transform; before one the mean says too much of how many
    views are enrolled, and the best walk alone serves better.

    Args:
        similarities: of each probe to each gallery entry [..., g].
        whose: which subject each entry is of [g], from 0 to `subjects` - 1.
        subjects: how many there are.

    Returns:
        [..., s]; -inf for a subject without walks.

    Raises:
        ValueError: the shapes don't fit, or an entry is of no such subject.
    """
    if whose.shape != similarities.shape[-1:]:
        raise ValueError(f"{similarities.shape} similarities to {whose.shape} entries")
    if len(whose) and not 0 <= whose.min() <= whose.max() < subjects:
        raise ValueError(f"entries of subjects from 0 to {subjects - 1} expected")
    scores = np.full((*similarities.shape[:-1], subjects), -np.inf)
    order = np.argsort(whose, kind="stable")
    listed, starts, counts = np.unique(whose[order], return_index=True, return_counts=True)
    if not len(listed):
        return scores
    sorted_by_subject = similarities[..., order].astype(np.float64)
    best = np.maximum.reduceat(sorted_by_subject, starts, axis=-1)
    mean = np.add.reduceat(sorted_by_subject, starts, axis=-1) / counts
    scores[..., listed] = (best + mean) / 2
    return scores


def fused(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Scores of several probes of one person [n, s] as those of one: their mean [s].

    Raises:
        ValueError: there is no probe.
    """
    if scores.ndim != 2 or not len(scores):
        raise ValueError(f"scores of probes [n, s] expected, not {list(scores.shape)}")
    mean: NDArray[np.float64] = scores.mean(axis=0, dtype=np.float64)
    return mean

"""Retrieval metrics: where the mates of a probe stand among the gallery, nearest first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one ranked gallery says about each of n probes.

    Attributes:
        first_mate: 1-based rank of the nearest mate [n]; 0 where the gallery holds no mate.
        average_precision: [n] in [0, 1]; NaN where the gallery holds no mate.
        inverse_penalty: mates over the rank of the last mate, whose mean is mINP [n] in [0, 1];
            NaN where the gallery holds no mate.
    """

    first_mate: NDArray[np.int64]
    average_precision: NDArray[np.float64]
    inverse_penalty: NDArray[np.float64]

    @property
    def has_mate(self) -> NDArray[np.bool_]:
        """Which probes have a mate in their gallery [n]."""
        return self.first_mate > 0

    def hits(self, rank: int) -> NDArray[np.float64]:
        """1 where a mate is among the nearest `rank`, else 0; a probe without mates misses [n]."""
        return (self.has_mate & (self.first_mate <= rank)).astype(np.float64)


def rank(
    distances: NDArray[np.float32],
    probe_subjects: NDArray[np.generic],
    gallery_subjects: NDArray[np.generic],
    excluded: NDArray[np.bool_] | None = None,
    *,
    at_once: int = 512,
) -> Ranking:
    """Rank the gallery for every probe; equal distances keep the gallery's order.

    Args:
        distances: [n, m], smaller is nearer.
        probe_subjects: identity of each probe [n].
        gallery_subjects: identity of each gallery sequence [m].
        excluded: pairs that must not be compared [n, m], as identical views of one subject.
        at_once: how many probes are ranked at once.

    Returns:
        One entry a probe, by the definitions of the person re-identification literature
        (average precision, CMC: Zheng et al., ICCV 2015; mINP: Ye et al., TPAMI 2021).

    Raises:
        ValueError: shapes disagree.
    """
    n, m = distances.shape
    if len(probe_subjects) != n or len(gallery_subjects) != m:
        raise ValueError(
            f"{distances.shape} distances for {len(probe_subjects)} probes and "
            f"{len(gallery_subjects)} gallery sequences"
        )
    if excluded is not None and excluded.shape != (n, m):
        raise ValueError(f"exclusions {excluded.shape} for {distances.shape} distances")
    first_mate = np.zeros(n, np.int64)
    precision = np.full(n, np.nan)
    penalty = np.full(n, np.nan)
    if not m:
        return Ranking(first_mate, precision, penalty)
    position = np.arange(1, m + 1)
    for top in range(0, n, at_once):
        rows = slice(top, top + at_once)
        mates = probe_subjects[rows, None] == gallery_subjects[None, :]
        values = distances[rows]
        if excluded is not None:
            # An excluded pair goes to the far end, where it moves nobody's rank.
            values = np.where(excluded[rows], np.inf, values)
            mates = mates & ~excluded[rows]
        order = np.argsort(values, axis=1, kind="stable")
        ranked = np.take_along_axis(mates, order, axis=1)
        found = ranked.any(axis=1)
        count = ranked.sum(axis=1)[found]
        seen = np.cumsum(ranked[found], axis=1)
        last = m - np.argmax(ranked[found, ::-1], axis=1)
        first_mate[rows][found] = np.argmax(ranked[found], axis=1) + 1
        precision[rows][found] = (seen / position * ranked[found]).sum(axis=1) / count
        penalty[rows][found] = count / last
    return Ranking(first_mate, precision, penalty)

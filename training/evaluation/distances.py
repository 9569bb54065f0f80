"""Distances between part embeddings, for galleries too large to compare in one product."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.card import Metric
from models.comparison.similarity import mean_part_cosines, mean_part_distances


def pairwise_distances(
    probes: NDArray[np.float32],
    gallery: NDArray[np.float32],
    metric: Metric,
    *,
    probes_at_once: int = 512,
    gallery_at_once: int = 4096,
) -> NDArray[np.float32]:
    """Distance of every probe to every gallery sequence, smaller is nearer.

    `euclidean` is the mean over parts of the part's Euclidean distance, `cosine` is one minus the
    mean over parts of the part's cosine: the two distances of OpenGait's evaluator. Products are
    summed in float64, so a sequence is at distance 0 from itself to about 1e-6, where a float32
    expansion of the square leaves up to 2e-3. A part of length zero has cosine 0 with everything.

    Args:
        probes: embeddings [n, p, c].
        gallery: embeddings [m, p, c].
        metric: which of the two.
        probes_at_once: how many probes are compared in one product.
        gallery_at_once: with how many of the gallery.

    Returns:
        Distances [n, m].

    Raises:
        ValueError: shapes disagree, a number is not finite, or the metric is unknown.
    """
    if probes.ndim != 3 or gallery.ndim != 3 or probes.shape[1:] != gallery.shape[1:]:
        raise ValueError(
            f"expected embeddings [n, p, c] and [m, p, c], got {probes.shape} and {gallery.shape}"
        )
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")
    for role, embeddings in (("probe", probes), ("gallery", gallery)):
        if not np.isfinite(embeddings).all():
            raise ValueError(f"a {role} embedding holds a number that is not finite")
    distances = np.empty((len(probes), len(gallery)), np.float32)
    for top in range(0, len(probes), probes_at_once):
        rows = probes[top : top + probes_at_once]
        for left in range(0, len(gallery), gallery_at_once):
            columns = gallery[left : left + gallery_at_once]
            distances[top : top + len(rows), left : left + len(columns)] = _block(
                rows, columns, metric
            )
    return distances


def to_similarity(distances: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """The similarity the service shows (larger is better) for a distance of the same metric.

    Cosine: `1 - distance`, the mean part cosine. Euclidean: `1 / (1 + distance)`.
    """
    one = np.float32(1)
    return one - distances if metric == "cosine" else one / (one + distances)


def _block(
    probes: NDArray[np.float32], gallery: NDArray[np.float32], metric: Metric
) -> NDArray[np.float64]:
    if metric == "euclidean":
        return mean_part_distances(probes, gallery)
    cosines: NDArray[np.float64] = mean_part_cosines(
        probes.astype(np.float64), gallery.astype(np.float64)
    )
    return 1 - cosines

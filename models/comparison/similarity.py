"""How alike two walks are: part by part, larger is better.

Shapes: g gallery entries, n sequences, p parts, c channels. Parts of no length (all zeros) have no
direction: their cosine is 0 with anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.card import Metric

Embedding = NDArray[np.float32]
Vector = NDArray[np.float32]


def similarity(probe: Embedding, gallery: Embedding, metric: Metric) -> Vector:
    """Similarity of a probe `[p, c]` to each entry of a gallery `[g, p, c]`.

    cosine: the mean over parts of the part's cosine, in [-1, 1]. euclidean: `1 / (1 + d)`, d the
    mean over parts of the part's distance (OpenGait's `euc`), in (0, 1].

    Returns:
        float32 `[g]`.

    Raises:
        ValueError: the shapes don't fit, or the metric is unknown.
    """
    if metric == "euclidean":
        return _nearness(_part_distances(probe, gallery).mean(axis=1))
    mean: Vector = part_similarity(probe, gallery, metric).mean(axis=1)
    return mean


def part_similarity(probe: Embedding, gallery: Embedding, metric: Metric) -> Vector:
    """Similarity of each part of a probe `[p, c]` to the same part of gallery entries `[g, p, c]`.

    cosine: its cosine, so that the mean over parts is `similarity`. euclidean: `1 / (1 + d)` of
    the part's own distance; the mean over parts is not `similarity`, but the order of parts holds.

    Returns:
        float32 `[g, p]`.

    Raises:
        ValueError: the shapes don't fit, or the metric is unknown.
    """
    if metric == "euclidean":
        return _nearness(_part_distances(probe, gallery))
    if metric != "cosine":
        raise ValueError(f"unknown metric {metric!r}; known: cosine, euclidean")
    _check(probe, gallery)
    products = np.einsum("gpc,pc->gp", gallery, _unit_parts(probe), dtype=np.float32)
    return _quotient(products, np.linalg.norm(gallery, axis=2))


def index_vectors(embeddings: Embedding) -> Vector:
    """Vectors whose inner product is the cosine similarity of the embeddings.

    Each part is scaled to length `1 / sqrt(p)` and the parts are laid end to end: the inner
    product of two such vectors is the mean of the part cosines, and every vector has length 1
    (less by its zero parts).

    Args:
        embeddings: `[n, p, c]`.

    Returns:
        `[n, p*c]`, C-contiguous; float32, or float64 for embeddings of float64.

    Raises:
        ValueError: not three axes, or no parts.
    """
    if embeddings.ndim != 3 or embeddings.shape[1] == 0:
        raise ValueError(f"embeddings must be [n, p, c], not {list(embeddings.shape)}")
    count, parts, channels = embeddings.shape
    units = _unit_parts(embeddings)
    vectors = units / units.dtype.type(np.sqrt(parts))
    return np.ascontiguousarray(vectors.reshape(count, parts * channels))


def mean_part_cosines(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[Any]:
    """Cosine similarity `[n, m]` of every pair of embeddings `[n, p, c]` and `[m, p, c]`.

    Computed in float32, or in float64 for embeddings of float64.
    """
    cosines: NDArray[Any] = index_vectors(rows) @ index_vectors(columns).T
    return cosines


def mean_part_distances(rows: Embedding, columns: Embedding) -> NDArray[np.float64]:
    """Mean distance of parts `[n, m]` of every pair of embeddings `[n, p, c]` and `[m, p, c]`.

    Squared distances by expansion lose half the digits: double precision has them to spare.
    """
    total = np.zeros((len(rows), len(columns)))
    for part in range(rows.shape[1]):
        one = rows[:, part].astype(np.float64)
        other = columns[:, part].astype(np.float64)
        squared = one @ other.T
        squared *= -2
        squared += (one * one).sum(axis=1)[:, None]
        squared += (other * other).sum(axis=1)[None, :]
        np.maximum(squared, 0, out=squared)
        total += np.sqrt(squared, out=squared)
    mean: NDArray[np.float64] = total / rows.shape[1]
    return mean


def _part_distances(probe: Embedding, gallery: Embedding) -> Vector:
    # differences, not the expanded square: that loses the small distances to cancellation
    _check(probe, gallery)
    distances: Vector = np.linalg.norm(gallery - probe, axis=2).astype(np.float32, copy=False)
    return distances


def _nearness(distances: Vector) -> Vector:
    return np.reciprocal(1 + distances, dtype=np.float32)


def _unit_parts(embeddings: Embedding) -> Vector:
    if embeddings.dtype != np.float64:
        embeddings = embeddings.astype(np.float32, copy=False)
    return _quotient(embeddings, np.linalg.norm(embeddings, axis=-1, keepdims=True))


def _quotient(dividends: Vector, divisors: Vector) -> Vector:
    """0 where the divisor is 0."""
    quotients: Vector = np.zeros_like(dividends)
    np.divide(dividends, divisors, out=quotients, where=divisors > 0)
    return quotients


def _check(probe: Embedding, gallery: Embedding) -> None:
    if probe.ndim != 2 or gallery.ndim != 3 or gallery.shape[1:] != probe.shape or not probe.size:
        raise ValueError(
            f"a probe [p, c] and a gallery [g, p, c] are needed, not {list(probe.shape)} "
            f"and {list(gallery.shape)}"
        )

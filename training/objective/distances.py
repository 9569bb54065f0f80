"""Distances between the sequences of a batch, part by part."""

from __future__ import annotations

import torch
from torch import Tensor


def part_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances between all pairs of a batch, part by part.

    A sequence's distance to itself is exactly 0, and no gradient flows where a distance is 0: the
    slope of the root is infinite there, and expanding the square leaves rounding noise that it
    would amplify.

    Args:
        embeddings: [n, c, p].

    Returns:
        [p, n, n], float32.
    """
    rows = embeddings.float().permute(2, 0, 1)  # [p, n, c]
    norms = rows.square().sum(dim=-1)
    squared = norms.unsqueeze(2) + norms.unsqueeze(1) - 2 * rows @ rows.transpose(1, 2)
    itself = torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
    nothing = itself | (squared <= 0)
    # A harmless 1 stands in where there is no distance, so the root's backward never divides by 0.
    return squared.masked_fill(nothing, 1.0).sqrt().masked_fill(nothing, 0.0)


def others(distances: Tensor) -> Tensor:
    """Each row without its diagonal entry: [..., n, n] → [..., n, n - 1], in column order."""
    n = distances.shape[-1]
    keep = ~torch.eye(n, dtype=torch.bool, device=distances.device)
    return distances[..., keep].reshape(*distances.shape[:-2], n, n - 1)

"""Linear discriminant analysis of part embeddings, folded into a network's own head.

What differs between the walks of one person after training (view, clothes, the segmenter's faults)
lies mostly in a few directions of each part's embedding, and most of what tells people apart in a
few others. Fisher's discriminants (R. A. Fisher, 1936; for many classes C. R. Rao, 1948) are the
directions with the most variance between identities for their variance within: a matrix for each
part, found in closed form. Each is weighted by what it says about two walks being of one person:
were people and their walks normally distributed, the logarithm of that likelihood ratio would hold
the product of two walks' coordinates times v / (1 + 2 v), v being the variance between people for 1
within (probabilistic discriminants: S. Ioffe, ECCV 2006). It needs no gradient, costs nothing at
inference because it multiplies the projection that is there already, and makes embeddings several
times shorter.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.networks.network import GaitNetwork
from models.registry import build

Floats = NDArray[np.float64]

_LEAST: Final = 1e-3
"""Ratio of variances taken where people seem not to differ: no part may lose all its directions."""


class Discriminant(NamedTuple):
    """For each part the directions that tell people apart, those that do so best first.

    Attributes:
        matrices: float64 `[p, c, d]`: an embedding's part times its matrix; the variance within an
            identity is v / (1/2 + v) in a direction in which that between identities is v times
            larger: 1 where people differ most, near 0 where they hardly do.
        centre: float64 `[p, c]`: the mean embedding.
    """

    matrices: Floats
    centre: Floats


def discriminant(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    channels: int,
    *,
    shrinkage: float = 0.1,
) -> Discriminant:
    """Find each part's discriminants.

    Args:
        embeddings: `[n, p, c]`, of many identities with several walks each.
        labels: `[n]`, whose.
        channels: how many directions to keep of each part's c.
        shrinkage: share of the mean variance added to each direction's variance within an identity,
            so that what few walks happened not to vary in does not count as certain.

    Raises:
        ValueError: fewer identities or embedding channels than directions, or no identity with two
            walks.
    """
    count, parts, width = embeddings.shape
    identities, own = np.unique(labels, return_inverse=True)
    if channels > min(width, len(identities) - 1):
        raise ValueError(
            f"{channels} directions need at least {channels} channels and {channels + 1} "
            f"identities; there are {width} and {len(identities)}"
        )
    if count == len(identities):
        raise ValueError("no identity has two walks, so nothing says what varies within one")
    walks = np.bincount(own)
    means = np.zeros((len(identities), parts, width))
    np.add.at(means, own, embeddings)
    means /= walks[:, None, None]
    centre = embeddings.mean(axis=0, dtype=np.float64)
    matrices = np.empty((parts, width, channels))
    by_chance = np.mean(1.0 / walks)  # how far the mean of a few walks lies from the person's own
    for part in range(parts):
        rest = embeddings[:, part] - means[own, part]
        within = rest.T @ rest / (count - len(identities))
        within[np.diag_indices(width)] += shrinkage * np.trace(within) / width
        variances, axes = np.linalg.eigh(within)
        # Floored: a part in which nothing ever varies must not divide by zero.
        white = axes / np.sqrt(np.maximum(variances, 1e-12 * max(variances[-1], 1.0)))
        between = (means[:, part] - centre[part]) @ white
        _, spread, directions = np.linalg.svd(between, full_matrices=False)
        ratio = np.maximum(spread[:channels] ** 2 / len(identities) - by_chance, _LEAST)
        matrices[part] = white @ directions[:channels].T * np.sqrt(ratio / (0.5 + ratio))
    return Discriminant(matrices, centre)


@torch.no_grad()
def folded(network: GaitNetwork, found: Discriminant) -> GaitNetwork:
    """The same network with shorter embeddings: projection times discriminants, neck that centres.

    Its embeddings are compared behind the neck; it has no classifier. The given one stays as it is.

    Args:
        network: whose embeddings before the neck `found` was found on.
        found: discriminants of its parts.
    """
    matrices = torch.from_numpy(found.matrices)
    shorter = build(
        network.config.architecture,
        {
            **network.config.model_dump(mode="json"),
            "embedding_channels": matrices.shape[2],
            "embedding_source": "neck",
            "identities": 0,
        },
    )
    shorter.backbone.load_state_dict(network.backbone.state_dict())
    head = shorter.head
    head.projection.weight.copy_(torch.bmm(network.head.projection.weight.double(), matrices))
    # The neck reads channels of all parts in one row, a channel's parts side by side.
    centre = torch.einsum("pc,pcd->dp", torch.from_numpy(found.centre), matrices)
    head.neck.load_state_dict(
        {**head.neck.state_dict(), "running_mean": centre.flatten()}  # it only centres
    )
    return shorter.eval()

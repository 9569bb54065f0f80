"""Linear discriminant analysis of part embeddings, folded into a network's own head.

What differs between the walks of one person after training (view, clothes, the segmenter's faults)
lies mostly in a few directions of each part's embedding, and most of what tells people apart in a
few others. Fisher's discriminants (R. A. Fisher, 1936; for many classes C. R. Rao, 1948) are the
directions with the most variance between identities for their variance within: a matrix for each
part, found in closed form. Each is weighted by what it says about two walks being of one person:
were people and their walks normally distributed, the logarithm of that likelihood ratio would hold
the product of two walks' coordinates times v / (1 + 2 v), v being the variance between people for 1
within (probabilistic discriminants: S. Ioffe, ECCV 2006). It needs no gradient, takes the trained
projection's place, and makes embeddings several times shorter.

What varies within a person varies in many parts at once: a coat widens all of the trunk, a view
changes every strip. So the same is done once more with all parts as one vector, whose discriminants
tell what of a part the other parts explain. Of all matrices that give the same comparison the
symmetric one is taken, which leaves every part in its place.

People who are filmed in the same scenes have those in common. Where scenes are known, people are
told from those who share theirs: else a scene, which is in the mean of all walks of all of them,
would count as what tells people apart, while every search of a gallery has to see through it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.networks.network import GaitNetwork
from models.networks.registry import build

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

    def of(self, embeddings: NDArray[np.floating]) -> Floats:
        """What embeddings `[n, p, c]` are in these directions, `[n, p, d]`."""
        found: Floats = np.einsum(
            "npc,pcd->npd", embeddings - self.centre, self.matrices, optimize=True
        )
        return found


def discriminant(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    channels: int,
    *,
    shrinkage: float,
    sharing: NDArray[np.integer] | None = None,
) -> Discriminant:
    """Find each part's discriminants.

    Args:
        embeddings: `[n, p, c]`, of many identities with several walks each.
        labels: `[n]`, whose.
        channels: how many directions to keep of each part's c.
        shrinkage: share of the mean variance added to each direction's variance within an identity,
            so that what few walks happened not to vary in does not count as certain.
        sharing: `[n]`, which set of scenes each walk's identity is filmed in; None: not known.

    Raises:
        ValueError: fewer identities or embedding channels than directions, or no identity with two
            walks.
    """
    count, parts, width = embeddings.shape
    require_enough(labels, width, channels, sharing)
    identities, own = np.unique(labels, return_inverse=True)
    walks = np.bincount(own)
    means = np.zeros((len(identities), parts, width))
    np.add.at(means, own, embeddings)
    means /= walks[:, None, None]
    centre = embeddings.mean(axis=0, dtype=np.float64)
    apart = means - (centre if sharing is None else _of_company(means, own, sharing))
    matrices = np.empty((parts, width, channels))
    by_chance = np.mean(1.0 / walks)  # how far the mean of a few walks lies from the person's own
    for part in range(parts):
        rest = embeddings[:, part] - means[own, part]
        within = rest.T @ rest / (count - len(identities))
        within[np.diag_indices(width)] += shrinkage * np.trace(within) / width
        variances, axes = np.linalg.eigh(within)
        # Floored: a part in which nothing ever varies must not divide by zero.
        white = axes / np.sqrt(np.maximum(variances, 1e-12 * max(variances[-1], 1.0)))
        between = apart[:, part] @ white
        _, spread, directions = np.linalg.svd(between, full_matrices=False)
        ratio = np.maximum(spread[:channels] ** 2 / len(identities) - by_chance, _LEAST)
        matrices[part] = white @ directions[:channels].T * np.sqrt(ratio / (0.5 + ratio))
    return Discriminant(matrices, centre)


def _of_company(means: Floats, own: NDArray[np.intp], sharing: NDArray[np.integer]) -> Floats:
    """The mean of the identities `[k, p, c]` who share their scenes with each."""
    company = np.empty(len(means), np.int64)
    company[own] = np.unique(sharing, return_inverse=True)[1]
    sums = np.zeros((int(company.max()) + 1, *means.shape[1:]))
    np.add.at(sums, company, means)
    together: Floats = sums / np.bincount(company)[:, None, None]
    return together[company]


def require_enough(
    labels: NDArray[np.integer],
    width: int,
    channels: int,
    sharing: NDArray[np.integer] | None = None,
) -> None:
    """Tell what walks `[n]` of these labels cannot show, before anybody embeds them.

    Args:
        labels: `[n]`, whose.
        width: channels of the embeddings.
        channels: how many directions are to be found.
        sharing: see `discriminant`.

    Raises:
        ValueError: as `discriminant` would.
    """
    identities = len(np.unique(labels))
    places = 1 if sharing is None else len(np.unique(sharing))
    if channels > min(width, identities - places):
        more = "" if places == 1 else f" in {places} sets of scenes"
        raise ValueError(
            f"{channels} directions need at least {channels} channels and {channels + places} "
            f"identities{more}; there are {width} and {identities}"
        )
    if len(labels) == identities:
        raise ValueError("no identity has two walks, so nothing says what varies within one")


def mixing(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    shrinkage: float,
    sharing: NDArray[np.integer] | None = None,
) -> Floats:
    """The discriminants of all parts together, as a symmetric matrix.

    Args:
        embeddings: `[n, p, d]`, centred, of more than p · d identities with several walks each.
        labels: `[n]`, whose.
        shrinkage: see `discriminant`.
        sharing: see `discriminant`.

    Returns:
        float64 `[p, d, p, d]`: of a part and channel of the result and of what is multiplied.

    Raises:
        ValueError: there are no more than p · d identities, or none with two walks.
    """
    count, parts, width = embeddings.shape
    rows = embeddings.reshape(count, 1, parts * width)
    (together,) = discriminant(
        rows, labels, parts * width, shrinkage=shrinkage, sharing=sharing
    ).matrices
    # Their products of coordinates are those of this root: what is compared stays, but for which
    # part holds it.
    values, axes = np.linalg.eigh(together @ together.T)
    root: Floats = axes * np.sqrt(np.maximum(values, 0.0)) @ axes.T
    return root.reshape(parts, width, parts, width)


@torch.no_grad()
def unprojected(network: GaitNetwork) -> GaitNetwork:
    """A copy of the network whose embeddings are the pooled features themselves, in eval mode."""
    width = network.config.channels[-1]
    bare = _with_new_head(
        network, embedding_channels=width, embedding_source="embedding", mixing=False
    )
    bare.head.projection.weight.copy_(torch.eye(width))
    return bare.eval()


@torch.no_grad()
def folded(network: GaitNetwork, found: Discriminant, mixed: Floats | None) -> GaitNetwork:
    """A copy of the network with shorter embeddings.

    The projection is multiplied with the discriminants, and the neck centres.
    Its embeddings are compared behind the neck; it has no classifier. The given one stays as it is.

    Args:
        network: whose embeddings before the neck `found` was found on.
        found: discriminants of its parts.
        mixed: of all parts together, what `mixing` gave for embeddings in the directions found.
    """
    matrices = torch.from_numpy(found.matrices)
    shorter = _with_new_head(
        network,
        embedding_channels=matrices.shape[2],
        embedding_source="neck",
        mixing=mixed is not None,
    )
    head = shorter.head
    weight, before = network.head.projection.weight.double(), torch.from_numpy(found.centre)
    if (norm := network.head.projection.norm) is not None:
        known = norm.state_dict()
        scale = known["weight"].double() / (known["running_var"].double() + norm.eps).sqrt()
        weight = weight * scale
        before = before - (known["bias"] - known["running_mean"] * scale)
    head.projection.weight.copy_(torch.bmm(weight, matrices))
    # The neck reads channels of all parts in one row, a channel's parts side by side.
    centre = torch.einsum("pc,pcd->dp", before, matrices)
    head.neck.load_state_dict(
        {**head.neck.state_dict(), "running_mean": centre.flatten()}  # it only centres
    )
    if head.mixing is not None and mixed is not None:
        head.mixing.weight.copy_(_as_weight(mixed))
    return shorter.eval()


@torch.no_grad()
def compared(network: GaitNetwork, pooled: NDArray[np.floating]) -> Floats:
    """What a network compares, `[n, p, c]`, but for the lengths of parts.

    Args:
        network: compares behind its neck.
        pooled: features that `unprojected` gave, `[n, p, c_in]`.
    """
    head = network.eval().head
    rows = head.projection(torch.from_numpy(pooled.swapaxes(1, 2).astype(np.float32)))
    flat = head.neck(rows.flatten(1))
    if head.mixing is not None:
        flat = head.mixing(flat)
    found: Floats = flat.view_as(rows).numpy().swapaxes(1, 2).astype(np.float64)
    return found


@torch.no_grad()
def mixed_again(network: GaitNetwork, mixed: Floats) -> GaitNetwork:
    """A copy of the network whose parts read one another once more, without a classifier.

    Args:
        network: compares behind its neck; it stays as it is.
        mixed: what `mixing` gave for what the network compares.
    """
    second = _with_new_head(network, mixing=True)
    head = second.head
    head.projection.load_state_dict(network.head.projection.state_dict())
    head.neck.load_state_dict(network.head.neck.state_dict())
    weight = _as_weight(mixed)
    if network.head.mixing is not None:
        weight = weight @ network.head.mixing.weight.double()
    if head.mixing is not None:
        head.mixing.weight.copy_(weight)
    return second.eval()


def _as_weight(mixed: Floats) -> torch.Tensor:
    """A matrix of parts and channels as the head has it, a channel's parts side by side."""
    rows = mixed.shape[0] * mixed.shape[1]
    return torch.from_numpy(mixed.transpose(1, 0, 3, 2).reshape(rows, rows))


def _with_new_head(network: GaitNetwork, **head: object) -> GaitNetwork:
    """A network with the same backbone, a head still to be filled, and no classifier."""
    old = network.config.model_dump(mode="json")
    plain = {"projection_norm": False, "classifier": "cosine", "identities": 0}
    second = build(network.config.architecture, {**old, **head, **plain})
    second.backbone.load_state_dict(network.backbone.state_dict())
    if second.pooling is not None and network.pooling is not None:
        second.pooling.load_state_dict(network.pooling.state_dict())
    return second

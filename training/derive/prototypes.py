"""A classifier for subjects that a teacher was not trained on: a prototype each, the mean walk.

Logits over the student's identities are what a teacher of other people lacks. With cosine logits a
class is a direction behind the neck, and that of a person whose walks a network can embed is their
mean (nearest class mean: T. Mensink et al., TPAMI 2013; prototypes: J. Snell et al., 2017). So any
gait network can give them, in one pass over the walks and without a gradient.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from models import Progress
from models.networks.device import MixedPrecision, lay_out_for_convolution
from models.networks.network import GaitNetwork
from training.data.pack import Pack
from training.derive.derivation import rebuilt
from training.evaluation.embedding import embed_with_network


@torch.no_grad()
def with_prototypes(
    network: GaitNetwork,
    walks: Pack,
    precision: MixedPrecision,
    progress: Progress | None = None,
) -> GaitNetwork:
    """A copy of the network with a classifier of a pack's subjects, in the order of its labels.

    The neck's mean becomes that of these walks: what all of them share tells nobody apart, but
    would bring all cosines together. Embeddings before the neck stay as they were.

    Args:
        network: whose classifier, if it has one, is left out; stays as it is.
        walks: of the subjects, at least one each.
        precision: that products are computed in, and where.
        progress: told how many walks are embedded, again and again.

    Returns:
        A network of its own in eval mode; logits of the class k are cosines with the mean of the
        unit vectors of k's walks, part by part.
    """
    knowing = rebuilt(
        network,
        identities=len(walks.subjects),
        embedding_source="embedding",
        classifier="cosine",
    )
    knowing = knowing.to(precision.device).eval()
    head = knowing.head
    lay_out_for_convolution(knowing)

    embedded = embed_with_network(knowing, walks, precision, mirror=False, progress=progress)
    embeddings = torch.from_numpy(embedded).transpose(1, 2)  # [n, c, p], as the head takes them
    mean = embeddings.mean(0).flatten()  # channels of all parts in one row, as the neck reads them
    head.neck.load_state_dict({**head.neck.state_dict(), "running_mean": mean})
    units = head.unit_embeddings(embeddings.to(precision.device))
    labels = torch.from_numpy(walks.labels).to(units.device)
    sums = units.new_zeros(len(walks.subjects), *units.shape[1:]).index_add(0, labels, units)
    head.classifier.weight.copy_(functional.normalize(sums, dim=1).permute(2, 1, 0))
    return knowing

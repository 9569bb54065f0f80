"""Make a trained checkpoint's embeddings shorter and better, by `training.derive.discriminant`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models import checkpoint
from models.card import Card
from models.networks.device import MixedPrecision, find_device
from training.data.pack import Pack
from training.derive.derivation import save_derived
from training.derive.discriminant import discriminant, folded, mixing, require_enough, unprojected
from training.evaluation.embedding import embed_with_network
from training.process.events import Reporter
from training.recipe import Problem, RecipeError

_SEED = 0


def refine(
    source: Path,
    dataset: Path,
    out: Path,
    reporter: Reporter,
    *,
    channels: int,
    shrinkage: float,
    mixing_shrinkage: float | None,
    sequences: int | None = None,
    device: str = "auto",
) -> Card:
    """Write the checkpoint with its embeddings reduced to what tells people apart.

    Its head is made anew out of what it reads, the features pooled over time and strips, so a
    checkpoint that was refined before can be refined again with other walks.

    Args:
        source: folder of a trained checkpoint.
        dataset: packed walks of many people; of its partition, the training part.
        out: folder of the new checkpoint.
        reporter: told where it lies.
        channels: of a part of the new embeddings.
        shrinkage: see `training.derive.discriminant.discriminant`.
        mixing_shrinkage: the same of all parts together; None: parts do not explain one another,
            which takes more people than an embedding has numbers.
        sequences: about how many walks to use, of whole people drawn with a fixed seed; None: all.
        device: where the network runs.

    Returns:
        The new card, without the figures and thresholds of the old one: they are of other
        embeddings.

    Raises:
        RecipeError: the dataset does not allow so many channels, or mixing them.
        models.card.CheckpointError: the source cannot be read or the target not be written.
        training.data.pack.PackError: the dataset cannot be used.
    """
    network, card = checkpoint.load(source, "cpu")
    walks = _drawn(Pack.open(dataset), sequences)
    try:
        require_enough(walks.labels, network.config.channels[-1], channels)
    except ValueError as error:
        raise RecipeError([Problem("--channels", str(error))]) from error
    if mixing_shrinkage is not None:
        together = network.parts * channels
        try:
            require_enough(walks.labels, together, together)
        except ValueError as error:
            raise RecipeError([Problem("--mixing", f"{error}; or choose --no-mixing")]) from error
    where = find_device(device)
    bare = unprojected(network).to(where)
    embeddings = embed_with_network(bare, walks, MixedPrecision.choose("auto", where), mirror=False)
    found = discriminant(embeddings, walks.labels, channels, shrinkage=shrinkage)
    mixed = None
    if mixing_shrinkage is not None:
        mixed = mixing(found.of(embeddings), walks.labels, shrinkage=mixing_shrinkage)
    shorter = folded(bare.cpu(), found, mixed)
    return save_derived(
        out,
        shorter,
        card,
        reporter,
        metric="cosine",
        step="discriminant",
        facts={
            "dataset": {"name": walks.path.name, "content_hash": walks.content_hash},
            "subjects": len(walks.subjects),
            "sequences": len(walks),
            "shrinkage": shrinkage,
            "mixing_shrinkage": mixing_shrinkage,
        },
    )


def _drawn(pack: Pack, sequences: int | None) -> Pack:
    if pack.partition is not None:
        pack = pack.subset(pack.partition.train)
    if sequences is None or sequences >= len(pack):
        return pack
    people = max(2, round(len(pack.subjects) * sequences / len(pack)))
    order = np.random.default_rng(_SEED).permutation(len(pack.subjects))
    return pack.subset(pack.subjects[index] for index in order[:people])

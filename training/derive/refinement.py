"""Make a trained checkpoint's embeddings shorter and better, by `training.derive.discriminant`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from models import checkpoint
from models.card import Card
from models.networks.device import MixedPrecision, find_device
from models.networks.network import GaitNetwork
from training.data.pack import Pack
from training.derive.derivation import save_derived
from training.derive.discriminant import (
    compared,
    discriminant,
    folded,
    mixed_again,
    mixing,
    require_enough,
    unprojected,
)
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
    checkpoint that was refined before can be refined again with other walks. Of walks that all name
    their scene, people are told from those who share their scenes.

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
    sharing = _sharing(walks)
    try:
        require_enough(walks.labels, network.config.channels[-1], channels, sharing)
    except ValueError as error:
        raise RecipeError([Problem("--channels", str(error))]) from error
    if mixing_shrinkage is not None:
        together = network.parts * channels
        try:
            require_enough(walks.labels, together, together, sharing)
        except ValueError as error:
            raise RecipeError([Problem("--mixing", f"{error}; or choose --no-mixing")]) from error
    bare = unprojected(network)
    embeddings = _embedded(bare, walks, device)
    found = discriminant(embeddings, walks.labels, channels, shrinkage=shrinkage, sharing=sharing)
    mixed = None
    if mixing_shrinkage is not None:
        mixed = mixing(
            found.of(embeddings), walks.labels, shrinkage=mixing_shrinkage, sharing=sharing
        )
    return save_derived(
        out,
        folded(bare, found, mixed),
        card,
        reporter,
        metric="cosine",
        step="discriminant",
        facts={
            **_facts(walks, sharing),
            "shrinkage": shrinkage,
            "mixing_shrinkage": mixing_shrinkage,
        },
    )


def remix(
    source: Path,
    dataset: Path,
    out: Path,
    reporter: Reporter,
    *,
    mixing_shrinkage: float,
    sequences: int | None = None,
    device: str = "auto",
) -> Card:
    """Write the checkpoint with discriminants of all parts together behind those it has.

    What each part reads stays. So what many walks taught a head is kept where fewer walks, of a
    kind that it has not seen, show what else varies within people: those filmed in scenes.

    Args:
        source: folder of a checkpoint that is compared behind its neck, as `refine` writes it.
        dataset: see `refine`.
        out: folder of the new checkpoint.
        reporter: told where it lies.
        mixing_shrinkage: see `refine`.
        sequences: see `refine`.
        device: where the network runs.

    Returns:
        The new card, without the figures and thresholds of the old one: they are of other
        embeddings.

    Raises:
        RecipeError: the dataset does not allow it, or the checkpoint is compared before its neck.
        models.card.CheckpointError: the source cannot be read or the target not be written.
        training.data.pack.PackError: the dataset cannot be used.
    """
    network, card = checkpoint.load(source, "cpu")
    if network.config.embedding_source != "neck" or network.head.projection.norm is not None:
        reason = "the checkpoint is not compared behind its neck: run without it first"
        raise RecipeError([Problem("--again", reason)])
    walks = _drawn(Pack.open(dataset), sequences)
    sharing = _sharing(walks)
    together = network.parts * network.config.embedding_channels
    try:
        require_enough(walks.labels, together, together, sharing)
    except ValueError as error:
        raise RecipeError([Problem("--again", str(error))]) from error
    seen = compared(network, _embedded(unprojected(network), walks, device))
    mixed = mixing(seen, walks.labels, shrinkage=mixing_shrinkage, sharing=sharing)
    return save_derived(
        out,
        mixed_again(network, mixed),
        card,
        reporter,
        step="mixed_again",
        facts={**_facts(walks, sharing), "mixing_shrinkage": mixing_shrinkage},
    )


def _embedded(bare: GaitNetwork, walks: Pack, device: str) -> NDArray[np.float32]:
    """What a network makes of walks [n, p, c]; it is on the CPU afterwards."""
    where = find_device(device)
    precision = MixedPrecision.choose("auto", where)
    embeddings = embed_with_network(bare.to(where), walks, precision, mirror=False)
    bare.cpu()
    return embeddings


def _facts(walks: Pack, sharing: NDArray[np.int64] | None) -> dict[str, JsonValue]:
    return {
        "dataset": {"name": walks.path.name, "content_hash": walks.content_hash},
        "subjects": len(walks.subjects),
        "sequences": len(walks),
        **({} if sharing is None else {"sets_of_scenes": int(sharing.max()) + 1}),
    }


def _sharing(walks: Pack) -> NDArray[np.int64] | None:
    """Which set of scenes each walk's subject is filmed in; None if not every walk says its own."""
    scenes: list[set[str]] = [set() for _ in walks.subjects]
    for label, record in zip(walks.labels, walks.sequences, strict=True):
        scene = record.metadata.get("scene")
        if scene is None:
            return None
        scenes[label].add(str(scene))
    sets = sorted({tuple(sorted(one)) for one in scenes})
    number = {one: at for at, one in enumerate(sets)}
    of_subject = np.array([number[tuple(sorted(one))] for one in scenes], np.int64)
    return of_subject[walks.labels]


def _drawn(pack: Pack, sequences: int | None) -> Pack:
    if pack.partition is not None:
        pack = pack.subset(pack.partition.train)
    if sequences is None or sequences >= len(pack):
        return pack
    people = max(2, round(len(pack.subjects) * sequences / len(pack)))
    order = np.random.default_rng(_SEED).permutation(len(pack.subjects))
    return pack.subset(pack.subjects[index] for index in order[:people])

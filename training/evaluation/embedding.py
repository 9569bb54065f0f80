"""Embeddings of every sequence of a pack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models import Progress
from models.encoder import Encoder, Walk
from models.networks.device import MixedPrecision
from models.networks.network import GaitNetwork
from training.data.augmentation import plain
from training.data.pack import Pack

FRAMES_AT_ONCE = 512
_SEQUENCES_AT_ONCE = 32

Embeddings = NDArray[np.float32]


def embed_with_encoder(
    encoder: Encoder, pack: Pack, *, mirror: bool = False, progress: Progress | None = None
) -> Embeddings:
    """Embeddings of every sequence of a pack, in its order [n, p, c].

    Args:
        encoder: embeds.
        pack: silhouettes.
        mirror: exchange left and right first.
        progress: told how many sequences are done.
    """

    def embed(walks: list[Walk]) -> Embeddings:
        if mirror:
            walks = [np.ascontiguousarray(walk[..., ::-1]) for walk in walks]
        return encoder.encode(walks)

    size = _SEQUENCES_AT_ONCE
    batches = (range(at, min(at + size, len(pack))) for at in range(0, len(pack), size))
    return _embed(pack, encoder.reads_pose, embed, batches, progress)


@torch.no_grad()
def embed_with_network(
    network: GaitNetwork,
    pack: Pack,
    precision: MixedPrecision,
    *,
    mirror: bool,
    progress: Progress | None = None,
) -> Embeddings:
    """Embeddings of a pack's sequences in their order, [n, p, c], from a network in eval mode.

    Args:
        network: embeds.
        pack: silhouettes.
        precision: that products are computed in.
        mirror: give the mean of a walk's embedding and its mirror image's.
        progress: told how many sequences are done.
    """

    def embed(walks: list[Walk]) -> Embeddings:
        frames = torch.from_numpy(np.concatenate(walks))
        frames = plain(frames.unsqueeze(0).to(precision.device)).squeeze(0)
        ways = [frames, frames.flip(-1)] if mirror else [frames]
        with precision.autocast():
            outputs = [network(way, [len(walk) for walk in walks]) for way in ways]
        embeddings = [network.matching(output.embeddings.float()) for output in outputs]
        return torch.stack(embeddings).float().mean(0).cpu().numpy()

    return _embed(pack, network.reads_pose, embed, _by_length(pack), progress)


def _embed(
    pack: Pack,
    pose: bool,
    embed: Callable[[list[Walk]], Embeddings],
    batches: Iterable[Sequence[int]],
    progress: Progress | None,
) -> Embeddings:
    done, parts = 0, []
    order: list[int] = []
    for members in batches:
        parts.append(embed([pack.walk(i, pose=pose) for i in members]))
        order.extend(members)
        done += len(members)
        if progress is not None:
            progress(done)
    embeddings = np.concatenate(parts)
    found = np.empty_like(embeddings)
    found[order] = embeddings
    return found


def _by_length(pack: Pack) -> Iterator[list[int]]:
    """Sequences by length, so that a network which groups equal lengths finds large groups."""
    batch: list[int] = []
    frames = 0
    for i in np.argsort(pack.lengths, kind="stable").tolist():
        if batch and frames + pack.lengths[i] > FRAMES_AT_ONCE:
            yield batch
            batch, frames = [], 0
        batch.append(i)
        frames += int(pack.lengths[i])
    if batch:
        yield batch

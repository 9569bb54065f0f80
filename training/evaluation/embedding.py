"""Embeddings of every sequence of a pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray

from models.networks.device import MixedPrecision
from models.networks.network import GaitNetwork
from training.data.augmentation import plain
from training.data.pack import Pack

if TYPE_CHECKING:
    from models.encoder import Encoder

FRAMES_AT_ONCE = 512
_SEQUENCES_AT_ONCE = 32


def embed_pack(
    encoder: Encoder,
    pack: Pack,
    *,
    mirror: bool = False,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Embeddings of every sequence of a pack, in its order [n, p, c].

    Args:
        encoder: embeds.
        pack: silhouettes.
        mirror: exchange left and right first.
        progress: called with the number of sequences of each finished step.
    """
    found = []
    for start in range(0, len(pack), _SEQUENCES_AT_ONCE):
        chosen = range(start, min(start + _SEQUENCES_AT_ONCE, len(pack)))
        walks = [pack.silhouettes(i) for i in chosen]
        if mirror:
            walks = [np.ascontiguousarray(walk[:, :, ::-1]) for walk in walks]
        found.append(encoder.encode(walks))
        if progress is not None:
            progress(len(walks))
    return np.concatenate(found)


@torch.no_grad()
def embed(
    network: GaitNetwork,
    pack: Pack,
    precision: MixedPrecision,
    *,
    mirror: bool,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Embeddings of a pack's sequences in their order, [n, p, c], from a network in eval mode.

    Args:
        network: embeds.
        pack: silhouettes.
        precision: that products are computed in.
        mirror: give the mean of a walk's embedding and its mirror image's.
        progress: told how many sequences are done, again and again.
    """
    done = 0
    found = np.empty((len(pack), network.parts, network.channels), np.float32)
    for members in _batches(pack):
        walks = [torch.from_numpy(pack.silhouettes(i)) for i in members]
        frames = plain(torch.cat(walks).unsqueeze(0).to(precision.device)).squeeze(0)
        ways = [frames, frames.flip(-1)] if mirror else [frames]
        with precision.autocast():
            outputs = [network(way, [len(walk) for walk in walks]) for way in ways]
        embeddings = [network.matching(output.embeddings.float()) for output in outputs]
        mean = torch.stack(embeddings).float().mean(0)
        found[members] = mean.transpose(1, 2).cpu().numpy()
        done += len(members)
        if progress is not None:
            progress(done)
    return found


def _batches(pack: Pack) -> Iterator[list[int]]:
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

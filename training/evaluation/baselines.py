"""Rows to read a result against: the gait energy image, and a network that learnt nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.silhouettes import gait_energy_image

if TYPE_CHECKING:
    from models.encoder import Encoder

GAIT_ENERGY_IMAGE = "gait energy image"
UNTRAINED = "untrained network"


def energy_embeddings(sequences: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Gait energy images as embeddings of one part, to be compared by Euclidean distance.

    Source: Han & Bhanu, "Individual recognition using gait energy image", TPAMI 28(2), 2006.

    Args:
        sequences: uint8 [s, 64, 64] each.

    Returns:
        [n, 1, 64 * 44].
    """
    return np.stack([gait_energy_image(frames).reshape(1, -1) for frames in sequences])


def untrained_encoder(checkpoint: Path, *, device: str, seed: int) -> Encoder:
    """The architecture of a checkpoint with fresh random weights, of float32.

    It goes through a checkpoint folder of its own, so that it is prepared, loaded and run exactly
    as the one it stands beside.

    Args:
        checkpoint: whose architecture and configuration to take.
        device: where it runs.
        seed: of the weights.
    """
    import torch

    from models.card import read_card
    from models.checkpoint import save
    from models.encoder import Encoder
    from models.networks.registry import build

    card = read_card(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # whole numbers cannot be drawn
        network = build(card.architecture, {**card.config, "quantised": None})
    with TemporaryDirectory() as folder:
        directory = Path(folder) / "untrained"
        config = network.config.model_dump(mode="json")
        changes = {"name": UNTRAINED, "config": config, "digest": ""}
        save(directory, network, card.model_copy(update=changes))
        return Encoder.open(directory, device=device, precision="float32")

"""SwinGait as OpenGait keeps it.

Its head has a part more than the maps have strips: a copy of the last, whose outputs are dropped.
Here that part is left out.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from models.networks.network import GaitNetwork
from models.networks.swingait import WINDOW, relative_places
from models.opengait.format import (
    NECK,
    Format,
    OpenGaitError,
    Source,
    State,
    matrices,
    numbered,
    renamed,
)
from models.opengait.residual import BLOCK, BLOCK_P3D, DEEPGAITV2_STEM, VOLUMETRIC_IN_P3D

LAYER: Final = "transformer.layers.{}"
WINDOW_BLOCK: Final = {
    "before_attention": "norm1",
    "attention.bias": "attn.relative_position_bias_table",
    "attention.entry": "attn.qkv",
    "attention.exit": "attn.proj",
    "before_layers": "norm2",
    "layers.0": "mlp.fc1",
    "layers.2": "mlp.fc2",
}
KEPT: Final = {  # widths that no series of blocks tells
    "transformer.patch_embed.proj.weight": 5,
    "transformer.layers.0.downsample.1.weight": 2,
}
SERIES: Final = (  # the first kernel of each block of each stage
    r"layer1\.forward_block\.([0-9]{1,3})\.conv1\.weight",
    r"layer2\.([0-9]{1,3})\.conv1\.forward_block\.0\.weight",
    r"transformer\.layers\.0\.blocks\.([0-9]{1,3})\.attn\.qkv\.weight",
    r"transformer\.layers\.1\.blocks\.([0-9]{1,3})\.attn\.qkv\.weight",
)


def config(state: State) -> dict[str, Any]:
    """Widths, depths, parts and identities."""
    stages = [
        list(numbered(state, pattern, f"the blocks of stage {stage}").values())
        for stage, pattern in enumerate(SERIES, start=1)
    ]
    for key, axes in KEPT.items():
        if key not in state or state[key].ndim != axes:
            raise OpenGaitError(f"{key!r} is missing, or has not {axes} axes")
    projection, classifier = matrices(state, "FCs.fc_bin"), matrices(state, "BNNecks.fc_bin")
    return {
        "channels": (
            *(convs[0].shape[0] for convs in stages[:2]),
            *(state[key].shape[0] for key in KEPT),
        ),
        "layers": tuple(map(len, stages)),
        "embedding_channels": projection.shape[2],
        "parts": projection.shape[0] - 1,
        "identities": classifier.shape[2],
    }


def sources(network: GaitNetwork, _: State) -> dict[str, Source]:
    """Every tensor's place; of the head's without the copied part."""
    names = {
        **NECK,
        **DEEPGAITV2_STEM,
        "backbone.stages.2.entry.conv": "transformer.patch_embed.proj",
        "backbone.stages.2.entry.after": "transformer.patch_embed.norm",
        "backbone.stages.3.entry.before": "transformer.layers.0.downsample.0",
        "backbone.stages.3.entry.linear": "transformer.layers.0.downsample.1",
        "backbone.stages.3.exit": "transformer.norm",
    }
    stages = [
        ("backbone.stages.0", "layer1.forward_block", BLOCK),
        ("backbone.stages.1", "layer2", BLOCK_P3D),
        ("backbone.stages.2.blocks", "transformer.layers.0.blocks", WINDOW_BLOCK),
        ("backbone.stages.3.blocks", "transformer.layers.1.blocks", WINDOW_BLOCK),
    ]
    for (stage, layer, block), depth in zip(stages, network.config.layers, strict=True):
        for number in range(depth):
            for ours, theirs in block.items():
                names[f"{stage}.{number}.{ours}"] = f"{layer}.{number}.{theirs}"
    found = renamed(network, names)
    parts = network.parts
    for key, source in found.items():
        shape = source.shape
        if key.startswith("backbone.stages.1.") and key.endswith(VOLUMETRIC_IN_P3D):
            found[key] = source._replace(shape=(*shape, 1))
        elif key == "backbone.stages.2.entry.conv.weight":
            found[key] = source._replace(shape=(*shape[:2], 1, *shape[2:]))
        elif key in ("head.projection.weight", "head.classifier.weight"):
            found[key] = source._replace(shape=(parts + 1, *shape[1:]), keep=_of_parts)
        elif key.startswith("head.neck.") and shape:
            places = (network.channels * (parts + 1),)
            found[key] = source._replace(
                shape=places, keep=lambda vector: vector.view(-1, parts + 1)[:, :parts]
            )
    return found


def _of_parts(matrices: Tensor) -> Tensor:
    return matrices[:-1]


def known(network: GaitNetwork) -> dict[str, Tensor]:
    """Which bias is between two places of a window, as the window's size says."""
    places = relative_places(WINDOW, torch.device("cpu"))
    return {
        f"transformer.layers.{layer}.blocks.{number}.attn.relative_position_index": places
        for layer, depth in enumerate(network.config.layers[2:])
        for number in range(depth)
    }


SWINGAIT: Final = Format(config, sources, known)

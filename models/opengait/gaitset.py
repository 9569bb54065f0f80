"""GaitSet as OpenGait keeps it."""

from __future__ import annotations

from typing import Any, Final

from models.networks.network import GaitNetwork
from models.opengait.format import (
    Format,
    Source,
    State,
    matrices,
    numbered,
    renamed,
    require_depth,
)

BLOCK: Final = r"set_block{}\.forward_block\.([0-9]{{1,3}})\.conv\.weight"


def config(state: State) -> dict[str, Any]:
    """Widths, depths and parts."""
    blocks = [
        list(numbered(state, BLOCK.format(block), f"the convolutions of block {block}").values())
        for block in (1, 2, 3)
    ]
    require_depth(blocks, 2, "block of a gaitset")
    projection = matrices(state, "Head.fc_bin")
    widths = [convs[0].shape[0] for convs in blocks]
    return {
        "channels": (*widths, widths[2]),
        "layers": (len(blocks[0]), len(blocks[1]), 1, len(blocks[2]) - 1),
        "embedding_channels": projection.shape[2],
        "parts": projection.shape[0],
    }


def sources(network: GaitNetwork, _: State) -> dict[str, Source]:
    """Its three blocks are our four stages: the third one's first convolution is our third."""
    first, second, third, fourth = network.config.layers
    names = {
        "head.projection.weight": "Head.fc_bin",
        "backbone.stem.conv": "set_block1.forward_block.0.conv",
    }
    series = [  # a stage of ours, their block, and its first convolution there
        ("backbone.stages.0", "set_block1.forward_block", 1, first - 1),
        ("backbone.stages.1", "set_block2.forward_block", 0, second),
        ("backbone.stages.2", "set_block3.forward_block", 0, third),
        ("backbone.stages.3", "set_block3.forward_block", third, fourth),
        ("backbone.set_stages.0", "gl_block2", 0, second),
        ("backbone.set_stages.1", "gl_block3", 0, third),
        ("backbone.set_stages.2", "gl_block3", third, fourth),
    ]
    for ours, theirs, start, depth in series:
        for number in range(depth):  # between two convolutions is a rectifier
            names[f"{ours}.{number}.conv"] = f"{theirs}.{2 * (start + number)}.conv"
    return renamed(network, names)


GAITSET: Final = Format(config, sources)

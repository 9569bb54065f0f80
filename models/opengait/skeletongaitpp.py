"""SkeletonGait++ as OpenGait keeps it."""

from __future__ import annotations

from typing import Any, Final

from models.networks.network import GaitNetwork
from models.opengait.format import NECK, Format, Source, State, matrices, numbered, renamed
from models.opengait.residual import BLOCK, BLOCK_P3D, VOLUMETRIC_IN_P3D

SERIES: Final = (  # the first kernel of each block of each stage
    r"sil_layer1\.forward_block\.([0-9]{1,3})\.conv1\.weight",
    *(rf"layer{n}\.([0-9]{{1,3}})\.conv1\.forward_block\.0\.weight" for n in (2, 3, 4)),
)
STREAMS: Final = {"silhouettes": "sil", "poses": "map"}  # ours, theirs
STEM: Final = {"conv": 0, "norm": 1}
ATTENTION: Final = {"0.conv": 0, "0.norm": 1, "2.conv": 3, "2.norm": 4, "4": 6}


def config(state: State) -> dict[str, Any]:
    """Widths, depths, parts and identities."""
    stages = [
        list(numbered(state, pattern, f"the blocks of stage {stage}").values())
        for stage, pattern in enumerate(SERIES, start=1)
    ]
    projection, classifier = matrices(state, "FCs.fc_bin"), matrices(state, "BNNecks.fc_bin")
    return {
        "channels": tuple(convs[0].shape[0] for convs in stages),
        "layers": tuple(map(len, stages)),
        "embedding_channels": projection.shape[2],
        "parts": projection.shape[0],
        "identities": classifier.shape[2],
    }


def sources(network: GaitNetwork, _: State) -> dict[str, Source]:
    """Every tensor's place."""
    names = dict(NECK)
    stages = [(f"backbone.clip_stages.{i}", f"layer{i + 2}", BLOCK_P3D) for i in range(3)]
    depths = [*network.config.layers[1:]]
    for ours, theirs in STREAMS.items():
        for module, number in STEM.items():
            names[f"backbone.stem.{ours}.{module}"] = f"{theirs}_layer0.forward_block.{number}"
        stages.append((f"backbone.frame_stage.{ours}", f"{theirs}_layer1.forward_block", BLOCK))
        depths.append(network.config.layers[0])
    for module, number in ATTENTION.items():
        ours = f"backbone.frame_stage.attention.{module}"
        names[ours] = f"fusion.conv.forward_block.{number}"
    for (stage, layer, block), depth in zip(stages, depths, strict=True):
        for number in range(depth):
            for module, theirs in block.items():
                names[f"{stage}.{number}.{module}"] = f"{layer}.{number}.{theirs}"
    found = renamed(network, names)
    for key, source in found.items():
        if ".clip_stages." in key and key.endswith(VOLUMETRIC_IN_P3D):
            found[key] = source._replace(shape=(*source.shape, 1))
    return found


SKELETONGAITPP: Final = Format(config, sources)

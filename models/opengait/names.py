"""OpenGait's name and shape of each tensor of our networks."""

from __future__ import annotations

from typing import Final, NamedTuple

from models.networks.deepgaitv2 import DeepGaitV2Config
from models.networks.network import ClipBackbone, GaitNetwork

BLOCK: Final = {
    "first.conv": "conv1",
    "first.norm": "bn1",
    "second.conv": "conv2",
    "second.norm": "bn2",
    "shortcut.conv": "downsample.0",
    "shortcut.norm": "downsample.1",
}
BLOCK_P3D: Final = {
    "first.conv": "conv1.forward_block.0",
    "first.norm": "conv1.forward_block.1",
    "temporal.conv": "shortcut3d",
    "temporal.norm": "sbn",
    "second.conv": "conv2.forward_block.0",
    "second.norm": "conv2.forward_block.1",
    "shortcut.conv": "downsample.0",
    "shortcut.norm": "downsample.1",
}
GAITBASE_STEM: Final = {
    "backbone.stem.conv": "Backbone.forward_block.conv1.conv",
    "backbone.stem.norm": "Backbone.forward_block.bn1",
}
DEEPGAITV2_STEM: Final = {
    "backbone.stem.conv": "layer0.forward_block.0",
    "backbone.stem.norm": "layer0.forward_block.1",
}
HEAD: Final = {
    "head.projection.weight": "FCs.fc_bin",
    "head.classifier.weight": "BNNecks.fc_bin",
}
# Convolutions that OpenGait writes as 3-D ones and we as 2-D ones
VOLUMETRIC_IN_P3D: Final = ("temporal.conv.weight", "shortcut.conv.weight")


class Source(NamedTuple):
    """Name and shape of a tensor in OpenGait."""

    key: str
    shape: tuple[int, ...]


class _Stage(NamedTuple):
    ours: str
    theirs: str
    block: dict[str, str]


def sources(network: GaitNetwork) -> dict[str, Source]:
    """For every tensor of `network`, by our name, where OpenGait keeps it."""
    modules = _modules(network)
    is_p3d = _mode(network) == "p3d"
    found = {}
    for key, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        if is_p3d and ".clip_stages." in key and key.endswith(VOLUMETRIC_IN_P3D):
            shape = (*shape, 1)
        module, _, name = key.rpartition(".")
        found[key] = Source(HEAD.get(key) or f"{modules[module]}.{name}", shape)
    return found


def _modules(network: GaitNetwork) -> dict[str, str]:
    """OpenGait's name of every convolution and normalisation, by ours."""
    stem = GAITBASE_STEM if _mode(network) is None else DEEPGAITV2_STEM
    modules = {**stem, "head.neck": "BNNecks.bn1d"}
    for stage, depth in zip(_stages(network), network.config.layers, strict=True):
        for number in range(depth):
            for ours, theirs in stage.block.items():
                modules[f"{stage.ours}.{number}.{ours}"] = f"{stage.theirs}.{number}.{theirs}"
    return modules


def _stages(network: GaitNetwork) -> list[_Stage]:
    if isinstance(network.backbone, ClipBackbone):
        block = BLOCK_P3D if _mode(network) == "p3d" else BLOCK
        return [
            _Stage("backbone.frame_stage", "layer1.forward_block", BLOCK),
            *(_Stage(f"backbone.clip_stages.{i}", f"layer{i + 2}", block) for i in range(3)),
        ]
    layer = "Backbone.forward_block.layer{}" if _mode(network) is None else "layer{}.forward_block"
    return [_Stage(f"backbone.stages.{i}", layer.format(i + 1), BLOCK) for i in range(4)]


def _mode(network: GaitNetwork) -> str | None:
    """DeepGaitV2's kind of convolution; None of a GaitBase."""
    return network.config.mode if isinstance(network.config, DeepGaitV2Config) else None

"""GaitBase and DeepGaitV2 as OpenGait keeps them."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from torch import Tensor

from models.card import summary
from models.networks.deepgaitv2 import DeepGaitV2Config
from models.networks.network import ClipBackbone, GaitNetwork
from models.opengait.format import NECK, Format, OpenGaitError, Source, State, matrices, renamed

CHANNEL_WEIGHTS: Final[dict[str, re.Pattern[str]]] = {  # the first kernel of each residual block
    "gaitbase": re.compile(r"Backbone\.forward_block\.layer([1-4])\.([0-9]{1,4})\.conv1\.weight"),
    "deepgaitv2": re.compile(
        r"layer([1-4])\.(?:forward_block\.)?([0-9]{1,4})\.conv1\.(?:forward_block\.0\.)?weight"
    ),
}

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
# Convolutions that OpenGait writes as 3-D ones and we as 2-D ones
VOLUMETRIC_IN_P3D: Final = ("temporal.conv.weight", "shortcut.conv.weight")


class _Stage(NamedTuple):
    ours: str
    theirs: str
    block: dict[str, str]


def gaitbase_config(state: State) -> dict[str, Any]:
    """Widths, depths, parts and identities of a GaitBase."""
    return _config("gaitbase", state)


def deepgaitv2_config(state: State) -> dict[str, Any]:
    """Those of a DeepGaitV2, and its kind of convolution: how the second stage's first is named."""
    mode = "3d" if "layer2.0.conv1.weight" in state else "p3d"
    if "layer2.forward_block.0.conv1.weight" in state:
        mode = "2d"
    return {**_config("deepgaitv2", state), "mode": mode}


def _config(architecture: str, state: State) -> dict[str, Any]:
    kernels: dict[int, dict[int, Tensor]] = {1: {}, 2: {}, 3: {}, 4: {}}
    for key, tensor in state.items():
        if match := CHANNEL_WEIGHTS[architecture].fullmatch(key):
            kernels[int(match[1])][int(match[2])] = tensor
    for number, blocks in kernels.items():
        if any(kernel.ndim == 0 for kernel in blocks.values()):
            raise OpenGaitError(f"the convolutions of stage {number} have no shape")
        if not blocks or sorted(blocks) != list(range(len(blocks))):
            raise OpenGaitError(
                f"this is not a {architecture}: stage {number} should have convolutions named "
                f"like {CHANNEL_WEIGHTS[architecture].pattern}, numbered from 0; "
                f"the file has {summary(sorted(state))}"
            )
    projection, classifier = matrices(state, "FCs.fc_bin"), matrices(state, "BNNecks.fc_bin")
    return {
        "channels": tuple(blocks[0].shape[0] for blocks in kernels.values()),
        "layers": tuple(len(blocks) for blocks in kernels.values()),
        "embedding_channels": projection.shape[2],
        "parts": projection.shape[0],
        "identities": classifier.shape[2],
    }


def sources(network: GaitNetwork, _: State) -> dict[str, Source]:
    """Every tensor's place, of either network."""
    found = renamed(network, _modules(network))
    if _mode(network) == "p3d":
        for key, source in found.items():
            if ".clip_stages." in key and key.endswith(VOLUMETRIC_IN_P3D):
                found[key] = source._replace(shape=(*source.shape, 1))
    return found


def _modules(network: GaitNetwork) -> dict[str, str]:
    """OpenGait's name of every convolution and normalisation, by ours."""
    stem = GAITBASE_STEM if _mode(network) is None else DEEPGAITV2_STEM
    modules = {**stem, **NECK}
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


GAITBASE: Final = Format(gaitbase_config, sources)
DEEPGAITV2: Final = Format(deepgaitv2_config, sources)

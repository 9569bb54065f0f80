"""GaitGL as OpenGait keeps it, with either head."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from models.networks.network import GaitNetwork
from models.opengait.format import (
    NECK,
    Format,
    Source,
    State,
    matrices,
    numbered,
    renamed,
    require_depth,
)

STAGES: Final = ("GLConvA0", "GLConvA1", "GLConvB2")
FIRST: Final = r"conv3d\.([0-9]{1,3})\.conv3d\.weight"
NESTED: Final = "GLConvA0.0.global_conv3d.conv3d.weight"  # of the deep network alone
# No shape tells into how many strips a layer cuts its maps: those of the published networks
HALVING: Final = {False: 3, True: 1}


def config(state: State) -> dict[str, Any]:
    """Widths, depths, parts and the kind of head; the halving is the published one."""
    first = numbered(state, FIRST, "the first convolutions")
    stages = [_convolutions(state, stage) for stage in STAGES]
    require_depth([first, *stages], 2 if NESTED in state else 1, "stage of such a gaitgl")
    projection = matrices(state, "Head0.fc_bin")
    necks = "BNNecks.fc_bin" in state
    classifier = matrices(state, "BNNecks.fc_bin" if necks else "Head1.fc_bin")
    return {
        "channels": (first[min(first)].shape[0], *(convs[0].shape[0] for convs in stages)),
        "layers": (len(first), *(len(convs) for convs in stages)),
        "halving": HALVING[NESTED in state],
        "embedding_channels": projection.shape[2],
        "parts": projection.shape[0],
        "identities": classifier.shape[2],
        "projection_norm": not necks,
        "classifier": "cosine" if necks else "product",
    }


def _convolutions(state: State, stage: str) -> list[Tensor]:
    """Of whole frames: one, or a series."""
    only = state.get(f"{stage}.global_conv3d.conv3d.weight")
    if only is not None and only.ndim:
        return [only]
    pattern = rf"{stage}\.([0-9]{{1,3}})\.global_conv3d\.conv3d\.weight"
    return list(numbered(state, pattern, f"the convolutions of {stage}").values())


def sources(network: GaitNetwork, state: State) -> dict[str, Source]:
    """The first head's normalisation belongs to the embeddings, so to our projection."""
    first, *depths = network.config.layers
    names = {"backbone.stem.conv": "conv3d.0.conv3d", "pooling.exponent": "HPP.p"}
    for number in range(1, first):
        names[f"backbone.stages.0.{number - 1}.conv"] = f"conv3d.{2 * number}.conv3d"
    names[f"backbone.stages.0.{first - 1}.conv"] = "LTA.0.conv3d"
    for stage, (theirs, depth) in enumerate(zip(STAGES, depths, strict=True), start=1):
        for number in range(depth):
            block = f"{theirs}.{number}" if NESTED in state else theirs
            names[f"backbone.stages.{stage}.{number}.whole.conv"] = f"{block}.global_conv3d.conv3d"
            names[f"backbone.stages.{stage}.{number}.strips.conv"] = f"{block}.local_conv3d.conv3d"
    names |= (
        {"head.projection.norm": "Bn", "head.classifier.weight": "Head1.fc_bin"}
        if network.config.projection_norm
        else NECK
    )
    return renamed(network, {**names, "head.projection.weight": "Head0.fc_bin"})


GAITGL: Final = Format(config, sources)

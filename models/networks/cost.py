"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.networks.network import GaitNetwork
from models.networks.registry import build


class Cost(NamedTuple):
    """Size and arithmetic of a network."""

    parameters: int
    embedding_parameters: int  # without neck and classifier, which only training needs
    macs_per_frame: float  # convolutions and matrix products, the head's shared by the frames


def cost(network: GaitNetwork, *, frames: int = 30) -> Cost:
    """Count what one sequence of 64 x 44 pixels costs, without computing anything.

    A quantised network counts as the float one of its shape: the multiplications are as many.

    Args:
        network: any architecture.
        frames: frames of the sequence.
    """
    if network.config.quantised:
        config = {**network.config.model_dump(mode="json"), "quantised": None}
        with torch.device("meta"):
            network = build(network.config.architecture, config)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    head = network.head
    training_only = sum(
        parameter.numel()
        for module in (head.neck, head.classifier)
        for parameter in module.parameters()
    )
    sketch = copy.deepcopy(network).to("meta").eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        frame = sketch.frame_shape(64, 44)
        pooled = sketch.pool(torch.empty(1, frames, *frame, device="meta"))
        embeddings = sketch.head.projection(pooled)
        if sketch.head.mixing is not None:
            sketch.head.mixing(embeddings.flatten(1))
        sketch.head.classifier(embeddings)
    macs = counter.get_total_flops() / 2  # the counter calls a multiply-accumulate two operations
    return Cost(parameters, parameters - training_only, macs / frames)

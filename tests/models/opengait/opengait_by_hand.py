"""OpenGait's networks once more, written as plainly as possible over their own state dict.

The goldens vouch for it where they exist (`test_opengait.py`); it vouches for us where they don't.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Shapes = dict[str, tuple[int, ...]]


def deepgaitv2_shapes(
    mode: str,
    channels: Sequence[int],
    layers: Sequence[int],
    *,
    embedding: int,
    parts: int = 16,
    identities: int = 5,
) -> Shapes:
    shapes: Shapes = {"layer0.forward_block.0.weight": (channels[0], 1, 3, 3)}
    shapes |= _norm("layer0.forward_block.1", channels[0])
    before = channels[0]
    for stage, (width, depth) in enumerate(zip(channels, layers, strict=True), start=1):
        stage_mode = "2d" if stage == 1 else mode
        for block in range(depth):
            room = f"layer{stage}.forward_block" if stage_mode == "2d" else f"layer{stage}"
            shapes |= _block(f"{room}.{block}", stage_mode, before, width, stage in (2, 3))
            before = width
    return shapes | _head(channels[-1], embedding, parts, identities)


def gaitbase_shapes(
    channels: Sequence[int],
    layers: Sequence[int],
    *,
    embedding: int,
    parts: int = 16,
    identities: int = 5,
    strides: Sequence[int] = (1, 2, 2, 1),
) -> Shapes:
    room = "Backbone.forward_block"
    shapes: Shapes = {f"{room}.conv1.conv.weight": (channels[0], 1, 3, 3)}
    shapes |= _norm(f"{room}.bn1", channels[0])
    before = channels[0]
    for stage, (width, depth) in enumerate(zip(channels, layers, strict=True), start=1):
        for block in range(depth):
            strided = strides[stage - 1] > 1 and block == 0
            shapes |= _block(f"{room}.layer{stage}.{block}", "2d", before, width, strided)
            before = width
    return shapes | _head(channels[-1], embedding, parts, identities)


def _norm(name: str, width: int) -> Shapes:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{vector}": (width,) for vector in vectors} | {
        f"{name}.num_batches_tracked": ()
    }


def _block(name: str, mode: str, before: int, width: int, strided: bool) -> Shapes:
    inner = {"2d": (3, 3), "p3d": (3, 3), "3d": (3, 3, 3)}[mode]
    conv, norm = (
        ("conv{}.forward_block.0", "conv{}.forward_block.1")
        if mode == "p3d"
        else ("conv{}", "bn{}")
    )
    shapes: Shapes = {}
    for number, channels_in in ((1, before), (2, width)):
        shapes[f"{name}.{conv.format(number)}.weight"] = (width, channels_in, *inner)
        shapes |= _norm(f"{name}.{norm.format(number)}", width)
    if mode == "p3d":
        shapes[f"{name}.shortcut3d.weight"] = (width, width, 3, 1, 1)
        shapes |= _norm(f"{name}.sbn", width)
    first = name.endswith(".0")
    if first and (strided or before != width):
        ones = (1, 1) if mode == "2d" else (1, 1, 1)
        shapes[f"{name}.downsample.0.weight"] = (width, before, *ones)
        shapes |= _norm(f"{name}.downsample.1", width)
    return shapes


def _head(width: int, embedding: int, parts: int, identities: int) -> Shapes:
    return {
        "FCs.fc_bin": (parts, width, embedding),
        "BNNecks.fc_bin": (parts, embedding, identities),
        **_norm("BNNecks.bn1d", parts * embedding),
    }


def forward(
    state: Mapping[str, Tensor], walk: Tensor, strides: Sequence[int] = (1, 2, 2, 1)
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, unit embeddings behind the neck `[c, p]` and logits `[k, p]` of `[s, h, w]`."""
    if "layer0.forward_block.0.weight" in state:
        stem, stem_norm, room = "layer0.forward_block.0", "layer0.forward_block.1", "layer{}"
    else:
        prefix = "Backbone.forward_block"
        stem, stem_norm, room = f"{prefix}.conv1.conv", f"{prefix}.bn1", f"{prefix}.layer{{}}"
    maps = torch.relu(_normalise(state, stem_norm, _convolve(state, stem, walk[None, None])))
    for stage, stride in enumerate(strides, start=1):
        name = room.format(stage)
        if any(key.startswith(f"{name}.forward_block.") for key in state):
            name += ".forward_block"
        block = 0
        while any(key.startswith(f"{name}.{block}.") for key in state):
            maps = _residual(state, f"{name}.{block}", maps, stride if block == 0 else 1)
            block += 1
    maps = maps[0].max(dim=1).values
    parts = state["FCs.fc_bin"].shape[0]
    embedding, units, logits = [], [], []
    for part, strip in enumerate(maps.chunk(parts, dim=1)):
        pooled = strip.flatten(1)
        embedding.append((pooled.max(1).values + pooled.mean(1)) @ state["FCs.fc_bin"][part])
    embeddings = torch.stack(embedding, dim=1)
    neck = _normalise(state, "BNNecks.bn1d", embeddings.reshape(1, -1)).reshape(embeddings.shape)
    for part in range(parts):
        columns = functional.normalize(state["BNNecks.fc_bin"][part], dim=0)
        units.append(functional.normalize(neck[:, part], dim=0))
        logits.append(units[-1] @ columns)
    return embeddings, torch.stack(units, dim=1), torch.stack(logits, dim=1)


def _residual(state: Mapping[str, Tensor], name: str, maps: Tensor, stride: int) -> Tensor:
    p3d = f"{name}.shortcut3d.weight" in state
    conv, norm = ("conv{}.forward_block.0", "conv{}.forward_block.1") if p3d else ("conv{}", "bn{}")

    def layer(number: int, maps: Tensor, stride: int) -> Tensor:
        convolved = _convolve(state, f"{name}.{conv.format(number)}", maps, stride)
        return _normalise(state, f"{name}.{norm.format(number)}", convolved)

    out = torch.relu(layer(1, maps, stride))
    if p3d:
        mixed = _normalise(state, f"{name}.sbn", _convolve(state, f"{name}.shortcut3d", out))
        out = torch.relu(out + mixed)
    out = layer(2, out, 1)
    if f"{name}.downsample.0.weight" in state:
        maps = _convolve(state, f"{name}.downsample.0", maps, stride)
        maps = _normalise(state, f"{name}.downsample.1", maps)
    return torch.relu(out + maps)


def _convolve(state: Mapping[str, Tensor], name: str, maps: Tensor, stride: int = 1) -> Tensor:
    """Any convolution as a 3-D one over `[1, c, s, h, w]`."""
    kernel = state[f"{name}.weight"]
    if kernel.ndim == 4:
        kernel = kernel.unsqueeze(2)
    padding = tuple(size // 2 for size in kernel.shape[2:])
    return functional.conv3d(maps, kernel, stride=(1, stride, stride), padding=padding)


def _normalise(state: Mapping[str, Tensor], name: str, maps: Tensor) -> Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{vector}"] for vector in ("running_mean", "running_var", "weight", "bias")
    )
    return functional.batch_norm(maps, mean, variance, weight, bias)

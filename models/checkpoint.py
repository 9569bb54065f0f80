"""A checkpoint: a folder of weights and the card that makes them meaningful.

No pickle is involved, and nothing of the size that a file claims is allocated before its contents
have been seen to match.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from pydantic import JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from models.card import (
    CARD,
    WEIGHTS,
    Card,
    CardThreshold,
    CheckpointError,
    CheckpointMismatch,
    InputSize,
    Metric,
    digest_of,
    read_fields,
    read_file,
    summary,
)
from models.files.disk import replace_folder
from models.networks.network import GaitNetwork
from models.networks.registry import UnknownArchitecture, build

MAX_WEIGHTS_BYTES: Final = 1 << 31  # the largest published, a GaitGL of 20,000 people, take 1.36e9
STORED_HALF: Final = (torch.float32, torch.float16)  # wanted, found
_HEADER_BYTES: Final = 2**16  # of a weights file, for what it says besides its tensors,
_HEADER_BYTES_A_TENSOR: Final = 512  # and for each tensor of the network


def card_of(
    network: GaitNetwork,
    *,
    name: str,
    metric: Metric,
    input: InputSize | None = None,
    mirror: bool = False,
    threshold: float | None = None,
    thresholds: tuple[CardThreshold, ...] = (),
    training: Mapping[str, JsonValue] | None = None,
    metrics: Mapping[str, JsonValue] | None = None,
    notes: str = "",
) -> Card:
    """The card of `network`, with what the network knows of itself filled in."""
    return Card(
        name=name,
        architecture=network.config.architecture,
        config=network.config.model_dump(mode="json"),
        input=input or InputSize(),
        metric=metric,
        parts=network.parts,
        channels=network.channels,
        identities=network.identities,
        mirror=mirror,
        threshold=threshold,
        thresholds=thresholds,
        training=dict(training or {}),
        metrics=dict(metrics or {}),
        notes=notes,
    )


def save(directory: Path, network: GaitNetwork, card: Card, *, half: bool = False) -> Card:
    """Write a checkpoint in one step: a reader never finds a part of one.

    Where one is replaced, the folder is absent for the moment between two renamings.

    Args:
        directory: the folder to make, or an earlier checkpoint to replace.
        network: its weights are written, from whatever device.
        card: describes `network`; its digest is filled in.
        half: keep matrices and kernels in float16 (half the size, 3 to 4 digits); vectors stay
            float32.

    Returns:
        The card as written.

    Raises:
        CheckpointMismatch: the card describes another network.
        CheckpointError: weights that are not finite or too large to be read again, or `directory`
            holds something else.
        OSError: the disk refused.
    """
    described = card_of(network, name=card.name, metric=card.metric)
    for field in ("architecture", "config", "parts", "channels", "identities"):
        if getattr(card, field) != getattr(described, field):
            raise CheckpointMismatch(
                f"the card's {field} is {getattr(card, field)!r}, "
                f"the network's {getattr(described, field)!r}"
            )
    weights = serialise_tensors(_storable(network, half=half))
    if len(weights) > MAX_WEIGHTS_BYTES:
        raise CheckpointError(f"weights of {len(weights)} bytes; {MAX_WEIGHTS_BYTES} can be read")
    fields = card.model_dump(mode="json", exclude={"digest"})
    digest = digest_of(hashlib.sha256(weights).digest(), fields)
    text = json.dumps({**fields, "digest": digest}, indent=2, ensure_ascii=False, allow_nan=False)
    files = {WEIGHTS: weights, CARD: text.encode()}
    if directory.exists():
        strangers = {path.name for path in directory.iterdir()} - files.keys()
        if strangers:
            raise CheckpointError(
                f"{directory} holds other files ({summary(sorted(strangers))}); "
                "a checkpoint needs a folder of its own"
            )
    replace_folder(directory, files)
    return card.model_copy(update={"digest": digest})


def load(directory: Path, device: str | torch.device = "cpu") -> tuple[GaitNetwork, Card]:
    """Rebuild the network a card describes: float32, in eval mode, on `device`.

    Raises:
        CheckpointMismatch: weights or card were changed after saving, or don't fit each other.
        CheckpointError: a file is missing, broken or too large, or the architecture is unknown.
    """
    fields, card = read_fields(directory)
    weights = read_file(directory / WEIGHTS, MAX_WEIGHTS_BYTES)
    actual = digest_of(hashlib.sha256(weights).digest(), fields)
    if actual != card.digest:
        raise CheckpointMismatch(
            f"{directory}: the card's digest is {card.digest[:12]!r}, that of the files "
            f"{actual[:12]!r}; a file was changed or damaged after the checkpoint was saved"
        )
    try:
        with torch.device("meta"):  # allocates nothing: the card may ask for any size
            network = build(card.architecture, card.config)
    except (UnknownArchitecture, ValidationError) as error:
        raise CheckpointError(f"{directory / CARD}: {error}") from error
    if (card.parts, card.channels, card.identities) != (
        network.parts,
        network.channels,
        network.identities,
    ):
        raise CheckpointMismatch(
            f"{directory / CARD}: parts, channels and identities contradict the configuration"
        )
    _check_header(directory, weights, network)
    try:
        tensors = parse_tensors(weights)
    except (SafetensorError, KeyError) as error:  # KeyError: a type of number torch has no name for
        raise CheckpointError(
            f"{directory / WEIGHTS} is not a safetensors file: {error}"
        ) from error
    faults = _misfits(network, tensors)
    if faults:
        raise CheckpointMismatch(f"{directory / WEIGHTS}: {summary(faults)}")
    tensors = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.to(device).eval(), card


def _check_header(directory: Path, weights: bytes, network: GaitNetwork) -> None:
    """Refuse a list of tensors that is far longer than this network's, before it is parsed."""
    length = int.from_bytes(weights[:8], "little")
    most = _HEADER_BYTES + _HEADER_BYTES_A_TENSOR * len(network.state_dict())
    if length > most:
        raise CheckpointError(
            f"{directory / WEIGHTS} is not a safetensors file of this network: its header is said "
            f"to have {length} bytes, at most {most} are expected"
        )


def _storable(network: GaitNetwork, *, half: bool) -> dict[str, Tensor]:
    stored = {}
    for key, value in network.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        if tensor.is_floating_point():
            tensor = tensor.float()
            if half and tensor.ndim > 1:
                tensor = tensor.half()
            if not tensor.isfinite().all():
                raise CheckpointError(f"the weights {key!r} are not finite")
        stored[key] = tensor
    return stored


def _misfits(network: GaitNetwork, tensors: Mapping[str, Tensor]) -> list[str]:
    """Everything wrong with `tensors` as weights of `network`, a sentence each."""
    expected = network.state_dict()
    faults = [f"{key!r} is missing" for key in expected.keys() - tensors.keys()]
    faults += [f"{key!r} does not belong" for key in tensors.keys() - expected.keys()]
    for key in expected.keys() & tensors.keys():
        wanted, found = expected[key], tensors[key]
        if wanted.shape != found.shape:
            faults.append(f"{key!r} has shape {list(found.shape)}, not {list(wanted.shape)}")
        elif found.dtype != wanted.dtype and (wanted.dtype, found.dtype) != STORED_HALF:
            faults.append(f"{key!r} is {found.dtype}, not {wanted.dtype}")
        elif not found.isfinite().all():
            faults.append(f"{key!r} is not finite")
    return sorted(faults)

"""How OpenGait keeps a network: what its checkpoint's shapes say, and where each tensor lies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, Final, NamedTuple

from torch import Tensor, nn

from models.card import summary
from models.networks.network import GaitNetwork

State = Mapping[str, Tensor]


class OpenGaitError(ValueError):
    """A file is not an OpenGait checkpoint of the architecture asked for."""


class Source(NamedTuple):
    """Where OpenGait keeps a tensor.

    Attributes:
        keys: several where it keeps pieces, which are joined along their first axis.
        shape: of each.
        keep: what is wanted of it; all, if None.
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    keep: Callable[[Tensor], Tensor] | None = None


class Format(NamedTuple):
    """An architecture as OpenGait keeps it.

    Attributes:
        config: what the shapes say of the network; raises OpenGaitError.
        sources: of the network and the file, for every tensor by our name its source. What a file
            does not have (neck and classifier of a network that only the triplet loss trained) is
            left out.
        known: tensors of the file which follow from the configuration, with their values.
    """

    config: Callable[[State], dict[str, Any]]
    sources: Callable[[GaitNetwork, State], dict[str, Source]]
    known: Callable[[GaitNetwork], dict[str, Tensor]] = lambda _: {}


NECK: Final = {
    "head.neck": "BNNecks.bn1d",
    "head.projection.weight": "FCs.fc_bin",
    "head.classifier.weight": "BNNecks.fc_bin",
}


def renamed(network: GaitNetwork, names: Mapping[str, str]) -> dict[str, Source]:
    """Sources of the tensors whose name, or whose module's, is in `names`, of the same shapes."""
    found = {}
    for key, tensor in network.state_dict().items():
        module, _, name = key.rpartition(".")
        theirs = names.get(key) or (f"{names[module]}.{name}" if module in names else None)
        if theirs is not None:
            found[key] = Source((theirs,), tuple(tensor.shape))
    return found


def numbered(state: State, pattern: str, what: str) -> dict[int, Tensor]:
    """The tensors of a series by their number, in order.

    Args:
        state: the file.
        pattern: of their keys, with a group for the number.
        what: they are, for the message.

    Raises:
        OpenGaitError: there is none, or one without a shape.
    """
    matches = ((re.fullmatch(pattern, key), tensor) for key, tensor in state.items())
    found = {int(match[1]): tensor for match, tensor in matches if match}
    if not found:
        raise OpenGaitError(
            f"{what} should be named like {pattern}; the file has {summary(sorted(state))}"
        )
    if any(tensor.ndim == 0 for tensor in found.values()):
        raise OpenGaitError(f"{what} have no shape")
    return dict(sorted(found.items()))


def require_depth(series: Iterable[Sized], depth: int, what: str) -> None:
    """Check that each series has so many convolutions.

    One that is missing from the file would make it a shallower network's.

    Raises:
        OpenGaitError: one has fewer or more.
    """
    depths = [len(convs) for convs in series]
    if any(found != depth for found in depths):
        raise OpenGaitError(
            f"each {what} has {depth} convolution{'s' * (depth > 1)}, not "
            f"{', '.join(map(str, depths))}"
        )


def matrices(state: State, key: str) -> Tensor:
    """A matrix for each part.

    Raises:
        OpenGaitError: it is missing, or something else.
    """
    if key not in state:
        raise OpenGaitError(f"{key!r} is missing")
    if state[key].ndim != 3:
        raise OpenGaitError(f"{key!r} has shape {list(state[key].shape)}, not three axes")
    return state[key]


def new_neck(network: GaitNetwork) -> dict[str, Tensor]:
    """Neck and classifier of no identities, as they are before training."""
    neck = nn.BatchNorm1d(network.parts * network.channels)
    found = {f"head.neck.{key}": tensor for key, tensor in neck.state_dict().items()}
    classifier = network.head.classifier.weight
    if not classifier.numel():
        found["head.classifier.weight"] = classifier.new_empty(classifier.shape, device="cpu")
    return found

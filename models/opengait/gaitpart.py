"""GaitPart as OpenGait keeps it."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any, Final

from torch import Tensor

from models.networks.network import GaitNetwork
from models.opengait.format import (
    Format,
    OpenGaitError,
    Source,
    State,
    matrices,
    numbered,
    renamed,
    require_depth,
)

CONV: Final = r"Backbone\.forward_block\.feature\.([0-9]{1,3})\.conv\.weight"
BRANCHES: Final = {"three": "conv1d3x1", "five": "conv1d3x3"}
# No shape tells into how many strips a layer cuts its maps: those of the published networks
HALVINGS: Final = {3: (0, 2, 3, 3), 4: (0, 0, 3, 3)}  # by their number of widths


def config(state: State) -> dict[str, Any]:
    """Widths, depths and parts; the halvings are those published with as many widths."""
    stages, widths = _stages(state)
    projection = matrices(state, "Head.fc_bin")
    return {
        "channels": tuple(convs[0].shape[0] for convs in stages),
        "layers": tuple(len(convs) for convs in stages),
        "halvings": HALVINGS[widths],
        "embedding_channels": projection.shape[2],
        "parts": projection.shape[0],
    }


def _stages(state: State) -> tuple[list[list[Tensor]], int]:
    """The convolutions of our four stages, and of how many widths they are.

    A rectifier is between two convolutions, and a maximum too where two stages meet, so a number is
    left out there; what is behind the second maximum is our third and fourth stage.
    """
    convs = numbered(state, CONV, "the convolutions")
    groups: list[list[Tensor]] = [[convs[0]]] if 0 in convs else [[]]
    for before, number in pairwise(convs):
        if number - before == 3:
            groups.append([])
        groups[-1].append(convs[number])
    steps = {after - before for before, after in pairwise(convs)}
    if 0 not in convs or not steps <= {2, 3} or len(groups) != 3 or len(groups[2]) < 2:
        raise OpenGaitError(
            "this is not a gaitpart: convolutions, two maxima between them, and two convolutions "
            f"at least behind these are expected, not numbers {', '.join(map(str, convs))}"
        )
    last = [list(run) for _, run in groupby(groups[2], lambda kernel: kernel.shape[0])]
    if len(last) > 2:
        raise OpenGaitError("this is not a gaitpart: it has more than two widths behind its maxima")
    require_depth([groups[0], groups[1], *last], len(groups[0]), "width of such a gaitpart")
    widths = 2 + len(last)
    if len(last) == 1:
        last = [last[0][:-1], last[0][-1:]]
    return [groups[0], groups[1], *last], widths


def sources(network: GaitNetwork, state: State) -> dict[str, Source]:
    """A part's convolutions over time are theirs, one group each of ours."""
    stages, _ = _stages(state)
    numbers = iter(numbered(state, CONV, "the convolutions"))
    names = {"head.projection.weight": "Head.fc_bin"}
    for stage, convs in enumerate(stages):
        for place in range(len(convs)):
            # the very first is our stem
            ours = f"stages.{stage}.{place - (stage == 0)}" if stage or place else "stem"
            names[f"backbone.{ours}.conv"] = f"Backbone.forward_block.feature.{next(numbers)}.conv"
    found = renamed(network, names)
    tensors = network.state_dict()
    for ours, theirs in BRANCHES.items():
        for layer in (0, 2):
            key = f"backbone.times.{ours}.{layer}.weight"
            rows, *shape = tensors[key].shape
            found[key] = Source(
                tuple(
                    f"TFA.pooling_func.{theirs}.{part}.{layer}.conv.weight"
                    for part in range(network.parts)
                ),
                (rows // network.parts, *shape),
            )
    return found


GAITPART: Final = Format(config, sources)

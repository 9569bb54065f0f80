"""Make a trained network deeper or wider without changing what it computes.

Training goes on from what the smaller network knows instead of from noise (function-preserving
growth, arXiv 1511.05641), which is what makes large networks affordable on a CPU. Deeper: blocks
are added that change nothing at first, for the last normalisation of each new residual branch has
weight 0 (arXiv 1706.02677), so that the branch adds zero. Wider: every channel gets copies of
itself, and the next layer shares its weight out among them, unequally, so that the copies learn
different things from the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models import checkpoint
from models.card import Card
from models.networks.blocks import ResidualBlockP3d
from models.networks.deepgaitv2 import STRIDES, DeepGaitV2Config, build_deepgaitv2
from models.networks.network import ClipBackbone, FrameBackbone, GaitNetwork
from models.networks.registry import build
from training.derive.derivation import save_derived
from training.process.events import Reporter
from training.recipe import Problem, RecipeError

Layers = tuple[int, int, int, int]
_QUANTISED: Final = (
    "a quantised network cannot be enlarged: enlarge the float one it was made from "
    "(default-float for the default)"
)


@torch.no_grad()
def grown(network: GaitNetwork, layers: Layers, mode: Literal["2d", "p3d"] = "p3d") -> GaitNetwork:
    """A DeepGaitV2 of the same widths, which computes what `network` computes.

    Args:
        network: of 2-D residual blocks: a GaitBase, or a DeepGaitV2 of mode 2d.
        layers: blocks of each stage, at least as many as it has.
        mode: p3d adds to each block behind the first stage a convolution over time as well.

    Raises:
        ValueError: the network is of another kind, or deeper than asked for.
    """
    config = network.config
    if config.quantised:
        raise ValueError(_QUANTISED)
    if not isinstance(network.backbone, FrameBackbone):
        raise ValueError(
            "only a GaitBase or a DeepGaitV2 of 2-D blocks can grow; this one is another, or reads "
            "time already"
        )
    if getattr(config, "strides", STRIDES) != STRIDES:
        raise ValueError(f"only networks of strides {STRIDES} can become a DeepGaitV2")
    if any(has > wanted for has, wanted in zip(config.layers, layers, strict=True)):
        raise ValueError(f"{config.layers} blocks cannot become {layers}: growing only adds")
    shared = config.model_dump(exclude={"strides", "layers", "mode"})
    deeper = build_deepgaitv2(DeepGaitV2Config(**shared, layers=layers, mode=mode))
    deeper.head.load_state_dict(network.head.state_dict())
    deeper.backbone.stem.load_state_dict(network.backbone.stem.state_dict())
    stages = zip(network.backbone.in_order, deeper.backbone.in_order, strict=True)
    for old_stage, new_stage in stages:
        for old, new in zip_longest(old_stage.children(), new_stage.children()):
            _begin_as(new, old)
    return deeper.train(network.training)


@torch.no_grad()
def widened(network: GaitNetwork, times: int, seed: int = 0) -> GaitNetwork:
    """A network of this architecture with `times` the channels that computes what `network` does.

    Embeddings keep their width. With equal shares the copies of a channel would get equal
    gradients and stay copies for ever; so shares are drawn.

    Args:
        network: a GaitBase or a DeepGaitV2.
        times: how many channels there are to be for each one, 2 or more.
        seed: of the shares.

    Raises:
        ValueError: that is not wider, or wider than any network can be, or the network another.
    """
    if not isinstance(network.backbone, FrameBackbone | ClipBackbone) or network.reads_pose:
        raise ValueError("only a GaitBase or a DeepGaitV2 can become wider")
    if times < 2:
        raise ValueError(f"{times} times as wide is not wider")
    config = network.config
    if config.quantised:
        raise ValueError(_QUANTISED)
    channels = [times * width for width in config.channels]
    wider = build(config.architecture, {**config.model_dump(mode="json"), "channels": channels})
    random = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in wider.state_dict().items()}
    wider.load_state_dict(
        {
            name: _spread(tensor, shapes[name], times, random)
            for name, tensor in network.state_dict().items()
        }
    )
    return wider.train(network.training)


def widen(source: Path, out: Path, reporter: Reporter, *, times: int) -> Card:
    """Write the checkpoint of the wider network, to be named by a recipe as `student.checkpoint`.

    Raises:
        RecipeError: this checkpoint cannot become that wide.
        models.card.CheckpointError: the source cannot be read or the target not be written.
    """
    network, card = checkpoint.load(source, "cpu")
    with _refused("--times"):
        wider = widened(network, times)
    return save_derived(out, wider, card, reporter, step="widened", facts={"times": times})


def grow(
    source: Path, out: Path, reporter: Reporter, *, layers: Layers, mode: Literal["2d", "p3d"]
) -> Card:
    """Write the checkpoint of the deeper network, to be named by a recipe as `student.checkpoint`.

    Raises:
        RecipeError: this checkpoint cannot grow so.
        models.card.CheckpointError: the source cannot be read or the target not be written.
    """
    network, card = checkpoint.load(source, "cpu")
    with _refused("--layers"):
        deeper = grown(network, layers, mode)
    return save_derived(out, deeper, card, reporter, step="grown", facts={})


@contextmanager
def _refused(option: str) -> Iterator[None]:
    """Say of an option what a network cannot become, each of its bounds in a sentence."""
    try:
        yield
    except ValidationError as error:
        raise RecipeError(
            Problem(option, f"{'.'.join(map(str, e['loc']))}: {e['msg']}")
            for e in error.errors(include_url=False)
        ) from error
    except ValueError as error:
        raise RecipeError([Problem(option, str(error))]) from error


def _begin_as(block: nn.Module, old: nn.Module | None) -> None:
    """Make a block compute what `old` does; where there was none, what goes in."""
    if old is None:
        nn.init.zeros_(block.second.norm.weight)  # type: ignore[union-attr, arg-type]
        return
    block.load_state_dict({**block.state_dict(), **old.state_dict()})
    if isinstance(block, ResidualBlockP3d):
        nn.init.zeros_(block.temporal.norm.weight)  # type: ignore[arg-type]


def _spread(weights: Tensor, shape: torch.Size, times: int, random: torch.Generator) -> Tensor:
    """Copy outputs (the first axis) and share out inputs (the second), where a shape has grown."""
    if not shape:
        return weights
    if shape[0] > len(weights):
        weights = torch.cat([weights] * times)
    if len(shape) > 1 and shape[1] > weights.shape[1]:
        shares = 0.5 + torch.rand((times, *weights.shape), generator=random)
        weights = torch.cat((weights * shares / shares.sum(0)).unbind(), dim=1)
    return weights

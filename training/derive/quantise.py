"""Whole numbers for a trained network's backbone, found layer by layer and without gradients.

The walks go through the network twice side by side: exactly, and as far as it is quantised. Each
convolution is fitted when they reach it. First its kernel is changed so that what it makes of the
rounded maps comes nearest to what the exact network has there (least squares, held to the trained
kernel by a ridge), which takes up the errors of all layers before it. Then its columns are rounded
one after the other, and what each loses is made up for by those still to come (GPTQ, arXiv
2210.17323). Rounding alone, to the nearest, costs a part's cosine a hundred times as much.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import Conv, ConvNorm, fold_batch_norm
from models.networks.device import MixedPrecision
from models.networks.network import ClipBackbone, FrameBackbone, GaitNetwork
from models.networks.quantised import MOST, MOST_UNSIGNED, QuantisedConv, QuantisedReLU
from models.networks.registry import build
from training.data.augmentation import plain
from training.data.pack import Pack
from training.evaluation.embedding import embed_with_network
from training.process import provenance
from training.recipe import Problem, RecipeError

CLIPS: Final = 72
CLIP_FRAMES: Final = 6
_COMPARED: Final = 60  # walks, about, that the card tells the agreement on
_EXACTLY: Final = MixedPrecision(torch.device("cpu"), half=False)
_SEED: Final = 0
_ROWS: Final = 40_000  # places of maps that a kernel is fitted to
_AT_ONCE: Final = 16  # frames or clips whose places are laid out at once
_RIDGE: Final = 1e-3  # of the mean variance of what a kernel reads
_DAMPING: Final = 1e-2  # the same, while rounding: the published value
_VALUES: Final = 300_000  # of a tensor of maps that its range is chosen by

_BEFORE: Final = {"activation": "stem", "inner": "first", "mixed": "temporal", "outer": "second"}
"""The convolution in front of each rectifier, by their names in their module."""


class Quantised(NamedTuple):
    """A quantised network, and what its card says of how it was made."""

    network: GaitNetwork
    facts: dict[str, JsonValue]


def quantise(network: GaitNetwork, dataset: Path) -> Quantised:
    """Quantise a network for walks like those of a pack; it stays as it is.

    Args:
        network: of float32.
        dataset: its training walks, if it is divided, else all.

    Raises:
        RecipeError: the network is quantised already, is neither a GaitBase nor a DeepGaitV2, or no
            walk is long enough.
        training.data.pack.PackError: the dataset cannot be used.
    """
    if network.config.quantised:
        raise RecipeError([Problem("--quantise", "the checkpoint is quantised already")])
    if not isinstance(network.backbone, FrameBackbone | ClipBackbone) or network.reads_pose:
        reason = f"only GaitBase and DeepGaitV2 can be quantised, not {network.config.architecture}"
        raise RecipeError([Problem("--quantise", reason)])
    pack = Pack.open(dataset)
    if pack.partition is not None:
        pack = pack.subset(pack.partition.train)
    clips = calibration_clips(pack)
    whole = quantised(network, clips)
    compared = _some_people(Pack.open(dataset))
    one, other = (
        embed_with_network(form.eval(), compared, _EXACTLY, mirror=False)
        for form in (network, whole)
    )
    cosines = (one * other).sum(2) / (np.linalg.norm(one, axis=2) * np.linalg.norm(other, axis=2))
    facts: dict[str, JsonValue] = {
        "numbers": whole.config.quantised,
        "dataset": {"name": pack.path.name, "content_hash": pack.content_hash},
        "clips": len(clips),
        "clip_frames": CLIP_FRAMES,
        "part_cosine": {
            "walks": len(compared),
            "mean": round(float(cosines.mean()), 5),
            "worst": round(float(cosines.min()), 5),
        },
        "commit": provenance.commit(),
    }
    return Quantised(whole, facts)


def _some_people(pack: Pack) -> Pack:
    """The first people for testing, if there are any, else for training, with enough walks."""
    people = pack.subjects
    if pack.partition is not None:
        people = pack.partition.test or pack.partition.train
    each = len(pack) / len(pack.subjects)
    return pack.subset(people[: max(1, round(_COMPARED / each))])


def calibration_clips(pack: Pack) -> Tensor:
    """Clips of a pack's walks, `[n, s, h, w]` in [0, 1].

    Raises:
        RecipeError: no walk is long enough.
    """
    random = np.random.default_rng(_SEED)
    fitting = np.flatnonzero(pack.lengths >= CLIP_FRAMES)
    if not len(fitting):
        reason = f"no walk for training has {CLIP_FRAMES} frames"
        raise RecipeError([Problem("--dataset", reason)])
    chosen = random.choice(fitting, min(CLIPS, len(fitting)), replace=False)
    starts = random.integers(0, pack.lengths[chosen] - CLIP_FRAMES, endpoint=True)
    clips = [
        pack.silhouettes(int(walk))[start : start + CLIP_FRAMES]
        for walk, start in zip(chosen, starts, strict=True)
    ]
    return plain(torch.from_numpy(np.stack(clips)))


@torch.no_grad()
def quantised(network: GaitNetwork, clips: Tensor) -> GaitNetwork:
    """A copy of the network whose backbone computes in whole numbers of 8 bits.

    Args:
        network: stays as it is.
        clips: float `[n, s, h, w]` in [0, 1], of walks like those it will meet.
    """
    config = network.config.model_dump(mode="json")
    result = build(network.config.architecture, {**config, "quantised": "int8"}).eval()
    result.head.load_state_dict(network.head.state_dict())
    fitting = copy.deepcopy(network.backbone).eval()
    fold_batch_norm(fitting)
    for name, module in list(fitting.named_modules()):
        whole = result.backbone.get_submodule(name)
        if isinstance(module, ConvNorm):
            module.conv = _FittingConv(_conv(module), _conv(whole))
        for rectifier, conv in _BEFORE.items():
            rounded = getattr(whole, rectifier, None)
            if isinstance(rounded, QuantisedReLU):
                before = _conv(getattr(whole, conv))
                setattr(module, rectifier, _FittingReLU(rounded, before))
    fitting.over_clips(torch.cat([clips, clips]))
    return result


def _conv(module: nn.Module) -> Any:
    """The convolution of a module that has one, of whatever kind."""
    return module.conv


class _FittingConv(nn.Module):
    """Fits a quantised convolution to the maps it is given: exact ones, and the same as rounded."""

    def __init__(self, exact: Any, rounded: QuantisedConv) -> None:
        super().__init__()
        self._exact, self._rounded = exact, rounded

    def forward(self, maps: Tensor) -> Tensor:
        exact, rounded = maps.chunk(2)
        wanted: Tensor = self._exact(exact)
        moments = _moments(self._exact, rounded, wanted)
        kernel = self._exact.weight.flatten(1).double()
        floor = torch.eye(kernel.shape[1]).double() * moments.variance.diagonal().mean()
        missing = moments.products - kernel @ moments.variance
        kernel = kernel + torch.linalg.solve(moments.variance + _RIDGE * floor, missing.T).T
        scale = _kernel_scales(kernel)
        whole = _rounded_in_turn(kernel / scale[:, None], moments.variance + _DAMPING * floor)
        bias = moments.wanted - (whole * scale[:, None]) @ moments.read
        self._rounded.load_state_dict(
            {"weight": whole.view_as(self._exact.weight), "scale": scale, "bias": bias}
        )
        return torch.cat([wanted, self._rounded(rounded)])


class _FittingReLU(nn.Module):
    """Chooses the range of a quantised rectifier, and lets the bias before it centre its error."""

    def __init__(self, rounded: QuantisedReLU, before: QuantisedConv) -> None:
        super().__init__()
        self._rounded, self._before = rounded, before

    def forward(self, maps: Tensor) -> Tensor:
        exact, rounded = maps.chunk(2)
        # what a shortcut without a convolution, and so without a bias, brings along
        shift = (exact - rounded).transpose(0, 1).flatten(1).mean(1)
        self._before.bias += shift
        rounded = rounded + shift.view(-1, *[1] * (maps.ndim - 2))
        exact = exact.relu()
        self._rounded.scale.copy_(_map_scale(exact))
        return torch.cat([exact, self._rounded(rounded)])


class _Moments(NamedTuple):
    """Of what a kernel reads (k numbers at a place) and what it is to give there (c numbers)."""

    read: Tensor  # [k] mean
    wanted: Tensor  # [c] mean
    variance: Tensor  # [k, k] of what is read
    products: Tensor  # [c, k] covariance of both


def _moments(conv: Conv, maps: Tensor, wanted: Tensor) -> _Moments:
    share = min(1.0, _ROWS / wanted[:, 0].numel())
    random = torch.Generator().manual_seed(_SEED)
    rows, targets = [], []
    for read, given in zip(torch.split(maps, _AT_ONCE), torch.split(wanted, _AT_ONCE), strict=True):
        chosen = torch.rand(given[:, 0].numel(), generator=random) < share
        rows.append(_patches(conv, read)[chosen])
        targets.append(given.movedim(1, -1).flatten(0, -2)[chosen])
    read, given = torch.cat(rows).double(), torch.cat(targets).double()
    mean_read, mean_given = read.mean(0), given.mean(0)
    read -= mean_read
    return _Moments(
        mean_read, mean_given, read.T @ read / len(read), (given - mean_given).T @ read / len(read)
    )


def _patches(conv: Conv, maps: Tensor) -> Tensor:
    """What the kernel reads at each place, `[places, c_in · kernel]`, ordered as its weights."""
    margins = cast("tuple[int, ...]", conv.padding)
    padding = [margin for margin in reversed(margins) for _ in range(2)]
    patches = functional.pad(maps, padding)
    for axis, (size, stride) in enumerate(zip(conv.kernel_size, conv.stride, strict=True), start=2):
        patches = patches.unfold(axis, size, stride)
    axes = len(conv.kernel_size)
    patches = patches.movedim(1, 1 + axes)  # channels behind the places
    return patches.flatten(1 + axes).flatten(0, axes)


def _kernel_scales(kernel: Tensor) -> Tensor:
    """`[c]`: the scale of each row's whole numbers with the least squared error."""
    most = kernel.abs().amax(1).clamp(min=1e-8)
    candidates = torch.linspace(0.6, 1, 21).double()[:, None] * most / MOST  # [r, c]
    steps = candidates[:, :, None]
    errors = ((kernel / steps).round().clamp(-MOST, MOST) * steps - kernel).square().sum(2)
    return candidates.gather(0, errors.argmin(0, keepdim=True))[0]


def _map_scale(maps: Tensor) -> Tensor:
    """The same of a tensor of maps, none below 0; judged by values drawn from it."""
    values = maps.flatten()
    most = values.max().clamp(min=1e-8)
    random = torch.Generator().manual_seed(_SEED)
    values = values[torch.randint(len(values), (_VALUES,), generator=random)]
    candidates = torch.linspace(0.4, 1, 31) * most / MOST_UNSIGNED
    errors = [
        ((values / step).round().clamp(max=MOST_UNSIGNED) * step - values).square().mean()
        for step in candidates
    ]
    return candidates[int(torch.stack(errors).argmin())]


def _rounded_in_turn(kernel: Tensor, variance: Tensor) -> Tensor:
    """Round `[c, k]` to whole numbers, each column's loss made up for by those after it.

    Args:
        kernel: in units of its rows' scales.
        variance: `[k, k]` of what the columns are multiplied with.
    """
    order = variance.diagonal().argsort(descending=True)
    left = kernel[:, order].clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(variance[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for column in range(left.shape[1]):
        exact = left[:, column].clone()
        left[:, column] = exact.round().clamp(-MOST, MOST)
        loss = (exact - left[:, column]) / factor[column, column]
        left[:, column + 1 :] -= loss[:, None] * factor[column, column + 1 :]
    return left[:, order.argsort()]

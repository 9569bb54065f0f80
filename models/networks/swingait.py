"""SwinGait: convolutions, then attention within shifted windows of space and time (2303.03301).

The windows are the Swin transformer's (arXiv 2103.14030), with a third axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import (
    ResidualBlock,
    ResidualBlockP3d,
    as_clips,
    as_frames,
    conv2d,
    of_silhouettes,
    stage,
)
from models.networks.network import Depth, GaitNetwork, NetworkConfig, SequenceBackbone

WINDOW: Final = (3, 3, 5)  # frames, rows, columns
SHIFT: Final = (1, 1, 2)
RESIZED: Final = (30, 20)  # rows and columns of the maps that are cut into patches
HEAD_CHANNELS: Final = 16
APART: Final = -100.0  # added to the attention between what was no neighbour before the shift

Size = Sequence[int]  # of frames, rows and columns


class SwinGaitConfig(NetworkConfig):
    """Widths and depths; the defaults are the network published for CCPG.

    That for Gait3D and GREW has layers 1, 4, 4, 2.

    Attributes:
        stochastic_depth: how often in training the last block is left out; earlier ones less.
    """

    architecture: ClassVar[str] = "swingait"

    quantised: None = None  # the other two alone have forms of whole numbers
    layers: tuple[Depth, Depth, Depth, Depth] = (1, 1, 2, 2)
    parts: Annotated[int, Field(ge=1, le=64)] = 15
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _heads_divide_the_channels(self) -> Self:
        for width in self.channels[2:]:
            if width % _heads(width):
                raise ValueError(
                    f"{width} channels can't be divided among {_heads(width)} heads of attention, "
                    f"one for every {HEAD_CHANNELS}"
                )
        return self


def _heads(width: int) -> int:
    return max(1, width // HEAD_CHANNELS)


class WindowAttention(nn.Module):
    """Attention of the places of a window to each other, by content and relative place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = _heads(width)
        places = [2 * size - 1 for size in WINDOW]
        self.bias = nn.Parameter(torch.zeros(places[0] * places[1] * places[2], self.heads))
        self.entry = nn.Linear(width, 3 * width)
        self.exit = nn.Linear(width, width)

    def forward(self, windows: Tensor, window: Size, mask: Tensor | None) -> Tensor:
        """Map windows `[n, windows, places, c]`; `mask` `[windows, places, places]` is added."""
        queries, keys, values = (
            self.entry(windows)
            .view(*windows.shape[:3], 3, self.heads, -1)
            .permute(3, 0, 1, 4, 2, 5)
        )
        scaled = queries * queries.shape[-1] ** -0.5
        places = relative_places(window, self.bias.device)
        attention = scaled @ keys.transpose(-1, -2) + self.bias[places].permute(2, 0, 1)
        if mask is not None:
            attention = attention + mask.to(attention.dtype).unsqueeze(1)
        mixed = attention.softmax(-1) @ values
        out: Tensor = self.exit(mixed.transpose(2, 3).flatten(3))
        return out


class WindowBlock(nn.Module):
    """Attention within windows, and two layers for each place; both added to what goes in.

    Args:
        width: channels.
        shifted: whether the windows lie across those of the block before.
        left_out: probability that a sequence skips the attention, or the layers, in training.
    """

    def __init__(self, width: int, *, shifted: bool, left_out: float) -> None:
        super().__init__()
        self.shifted = shifted
        self.left_out = left_out
        self.before_attention = nn.LayerNorm(width)
        self.attention = WindowAttention(width)
        self.before_layers = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, places: Tensor) -> Tensor:
        """Map `[n, s, h, w, c]`."""
        places = places + self._sometimes(self._attend(self.before_attention(places)))
        return places + self._sometimes(self.layers(self.before_layers(places)))

    def _attend(self, places: Tensor) -> Tensor:
        size = places.shape[1:4]
        # along an axis that one window covers there is nothing to shift
        window = [min(s, w) for s, w in zip(size, WINDOW, strict=True)]
        shift = [
            by if self.shifted and s > w else 0
            for s, w, by in zip(size, WINDOW, SHIFT, strict=True)
        ]
        missing = [-s % w for s, w in zip(size, window, strict=True)]
        places = functional.pad(places, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        padded = places.shape[1:4]
        mask = None
        if any(shift):
            places = places.roll([-by for by in shift], (1, 2, 3))
            mask = _between_neighbours(padded, window, shift, places.device)
        windows = _into_windows(places, window)
        mixed = _from_windows(self.attention(windows, window, mask), padded, window)
        if any(shift):
            mixed = mixed.roll(shift, (1, 2, 3))
        return mixed[:, : size[0], : size[1], : size[2]]

    def _sometimes(self, branch: Tensor) -> Tensor:
        if not self.training or not self.left_out:
            return branch
        kept = 1 - self.left_out
        chosen = torch.empty(len(branch), 1, 1, 1, 1, device=branch.device).bernoulli_(kept)
        return branch * (chosen / kept).to(branch.dtype)


def _into_windows(places: Tensor, window: Size) -> Tensor:
    """`[n, s, h, w, c]` to `[n, windows, places, c]`."""
    cells = [
        length
        for size, cut in zip(places.shape[1:4], window, strict=True)
        for length in (size // cut, cut)
    ]
    cut = places.reshape(len(places), *cells, -1)
    return cut.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)


def _from_windows(windows: Tensor, size: Size, window: Size) -> Tensor:
    """The inverse of `_into_windows`."""
    counts = [s // w for s, w in zip(size, window, strict=True)]
    cut = windows.reshape(len(windows), *counts, *window, -1)
    return cut.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(windows), *size, -1)


def relative_places(window: Size, device: torch.device) -> Tensor:
    """Row in the table of biases for each pair of places in a window, `[places, places]`."""
    axes = [torch.arange(size, device=device) for size in window]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    found = torch.zeros((), dtype=torch.int64, device=device)
    for axis, whole in zip(places, WINDOW, strict=True):
        found = found * (2 * whole - 1) + axis[:, None] - axis[None] + whole - 1
    return found


def _between_neighbours(size: Size, window: Size, shift: Size, device: torch.device) -> Tensor:
    """What keeps apart places of a window that rolling has brought together.

    Returns:
        `[windows, places, places]`, 0 or `APART`.
    """
    regions = torch.zeros(1, *size, 1, dtype=torch.int64, device=device)
    for axis, (length, cells, by) in enumerate(zip(size, window, shift, strict=True)):
        place = torch.arange(length, device=device)
        region = (place >= length - cells).long() + (place >= length - by)
        regions = regions * 3 + region.view([-1 if a == axis + 1 else 1 for a in range(5)])
    cut = _into_windows(regions, window)[0, :, :, 0]
    return (cut[:, :, None] != cut[:, None]).float() * APART


class WindowStage(nn.Module):
    """Entry, blocks whose windows are shifted by turns, exit; of clips `[n, c, s, h, w]`.

    Args:
        entry: clips to places `[n, s, h, w, c]`.
        width: channels.
        rates: how often each block is left out in training.
        exit: of places; nothing if None.
    """

    def __init__(
        self, entry: nn.Module, width: int, rates: list[float], exit: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.entry = entry
        self.blocks = nn.Sequential(
            *(
                WindowBlock(width, shifted=bool(number % 2), left_out=rate)
                for number, rate in enumerate(rates)
            )
        )
        self.exit = exit or nn.Identity()

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips to clips of `width` channels."""
        places: Tensor = self.exit(self.blocks(self.entry(clips)))
        return places.movedim(4, 1)


class Patches(nn.Module):
    """Clips, resized, as normalised patches of 2 x 2 pixels of a frame, `[n, s, 15, 10, c]`."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, width, 2, 2)
        self.after = nn.LayerNorm(width)

    def forward(self, clips: Tensor) -> Tensor:
        """Cut clips `[n, c, s, h, w]`."""
        resized = functional.interpolate(
            as_frames(clips), RESIZED, mode="bilinear", align_corners=True
        )
        patches: Tensor = self.after(self.conv(resized).permute(0, 2, 3, 1))
        return patches.view(len(clips), -1, *patches.shape[1:])


class Widening(nn.Module):
    """Clips `[n, c, s, h, w]` as places `[n, s, h, w, c']` of another width."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(channels_in)
        self.linear = nn.Linear(channels_in, width, bias=False)

    def forward(self, clips: Tensor) -> Tensor:
        """Change the width of each place."""
        places: Tensor = self.linear(self.before(clips.movedim(1, 4)))
        return places


class WindowBackbone(SequenceBackbone):
    """A stage of frames, a stage of clips, two stages of windows."""

    is_temporal: ClassVar[bool] = True

    def __init__(self, stem: nn.Module, stages: list[nn.Module]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    @property
    def in_order(self) -> list[nn.Module]:
        """Its stages, without the stem."""
        return list(self.stages)

    def stage_maps(self, silhouettes: Tensor) -> list[Tensor]:
        """Behind each stage the maps `[n, c, s, h', w']` of clips `[n, s, h, w]`."""
        frames = torch.relu(self.stem(of_silhouettes(silhouettes.flatten(0, 1))))
        maps = as_clips(self.stages[0](frames), silhouettes.shape[1])
        found = [maps]
        for following in list(self.stages)[1:]:
            maps = following(maps)
            found.append(maps)
        return found


def build_swingait(config: SwinGaitConfig) -> GaitNetwork:
    """An untrained SwinGait."""
    first, second, third, fourth = config.channels
    depths = config.layers
    blocks = depths[2] + depths[3]
    rates = [config.stochastic_depth * number / (blocks - 1) for number in range(blocks)]
    stages = [
        stage(ResidualBlock, first, first, depth=depths[0], stride=1),
        stage(ResidualBlockP3d, first, second, depth=depths[1], stride=2),
        WindowStage(Patches(second, third), third, rates[: depths[2]]),
        WindowStage(Widening(third, fourth), fourth, rates[depths[2] :], nn.LayerNorm(fourth)),
    ]
    return GaitNetwork(config, WindowBackbone(conv2d(1, first), stages))

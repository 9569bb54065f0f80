"""The encoder: walks to embeddings, on one device, in one precision, a few frames at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import (
    convert_conv2d_weight_memory_format,
    convert_conv3d_weight_memory_format,
)

from models import checkpoint
from models.card import Card
from models.networks.blocks import fold_batch_norm
from models.networks.device import computes_bfloat16, find_device
from models.networks.network import GaitNetwork
from models.networks.pooling import max_over_sequences, mean_over_windows

Walk = NDArray[np.uint8]
Precision = Literal["float32", "bfloat16"]

# More frames a call are slower on a CPU (pages of large activations are faulted in anew each time)
# and faster on a GPU.
FRAMES_PER_CALL: Final = {"cpu": 20, "cuda": 1024}
BFLOAT16_MAX_COSINE_ERROR: Final = 1e-3


class Encoder:
    """A checkpoint ready to embed walks. Safe to call from several threads.

    The network is prepared for inference: batch normalisation folded into the convolutions,
    channels last. `precision="float32"` stays within 5e-6 (relative) of the plain network;
    `"bfloat16"` takes half to two thirds of the time where the processor computes in it.

    Args:
        network: is taken over and changed; not to be used elsewhere afterwards.
        card: of `network`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …; `auto` is a GPU if there is one.
        precision: `auto` is bfloat16 where it is native and changes no part's cosine by more than
            1e-3 on a trial walk, if need be with the last stage in float32; else float32.

    Raises:
        ValueError: the device is not there, or the precision is unknown.
    """

    def __init__(
        self,
        network: GaitNetwork,
        card: Card,
        *,
        device: str = "auto",
        precision: Precision | Literal["auto"] = "auto",
    ) -> None:
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"unknown precision {precision!r}; known: auto, float32, bfloat16")
        self.card = card
        self.device = find_device(device)
        self._frames_per_call = FRAMES_PER_CALL.get(self.device.type, FRAMES_PER_CALL["cpu"])
        # One forward pass at a time: two would fight for the same cores or the same GPU
        self._lock = Lock()
        network = network.eval().requires_grad_(False)
        fold_batch_norm(network)
        convert_conv2d_weight_memory_format(network, torch.channels_last)
        convert_conv3d_weight_memory_format(network, torch.channels_last_3d)
        self._network = network.to(self.device)
        self.precision: Precision = "float32"
        if precision == "bfloat16" or (precision == "auto" and computes_bfloat16(self.device)):
            exact = self._network
            for keeps_last_stage in (False, True):
                self._network = _in_bfloat16(exact, keeps_last_stage=keeps_last_stage)
                self.precision = "bfloat16"
                if precision == "bfloat16" or self._error(exact) <= BFLOAT16_MAX_COSINE_ERROR:
                    return
            self._network, self.precision = exact, "float32"

    @classmethod
    def open(
        cls,
        directory: Path,
        device: str = "auto",
        precision: Precision | Literal["auto"] = "auto",
    ) -> Self:
        """Load a checkpoint and prepare it.

        Raises:
            CheckpointError: the checkpoint can't be read.
            ValueError: the device is not there, or the precision is unknown.
        """
        return cls(*checkpoint.load(directory), device=device, precision=precision)

    @property
    def digest(self) -> str:
        """Digest of the checkpoint. Embeddings of different digests can't be compared."""
        return self.card.digest

    def encode(self, walks: Sequence[Walk]) -> NDArray[np.float32]:
        """Embeddings of walks, in their order.

        Args:
            walks: uint8 `[s, h, w]` each, s at least 1; h and w as the card's input, or w wider by
                an even number of columns, which are cut off (64 x 64 becomes 64 x 44).

        Returns:
            float32 `[n, p, c]`; what is compared, not normalised unless the network does it.

        Raises:
            ValueError: a walk of another type or size.
        """
        if not walks:
            return np.empty((0, self.card.parts, self.card.channels), np.float32)
        fitting = [self._fit(walk, position) for position, walk in enumerate(walks)]
        frames = torch.from_numpy(np.concatenate(fitting))
        lengths = [len(walk) for walk in fitting]
        with self._lock, torch.inference_mode():
            embeddings = self._embed(self._network, frames.to(self.device), lengths)
            return embeddings.cpu().contiguous().numpy()

    def _fit(self, walk: Walk, position: int) -> Walk:
        size = self.card.input
        if walk.dtype != np.uint8 or walk.ndim != 3 or len(walk) == 0:
            raise ValueError(
                f"walk {position} must be uint8 [s, h, w] with a frame at least, "
                f"not {walk.dtype} {list(walk.shape)}"
            )
        _, height, width = walk.shape
        margin, odd = divmod(width - size.width, 2)
        if height != size.height or margin < 0 or odd:
            raise ValueError(
                f"walk {position} has frames of {height} x {width}, "
                f"the network wants {size.height} x {size.width}"
            )
        return walk[:, :, margin : width - margin]

    def _embed(self, network: GaitNetwork, frames: Tensor, lengths: list[int]) -> Tensor:
        """Embeddings `[n, p, c]` of uint8 frames `[sum(lengths), h, w]`."""
        embeddings = self._embed_one_way(network, frames, lengths)
        if self.card.mirror:
            mirrored = self._embed_one_way(network, frames.flip(-1), lengths)
            embeddings = (embeddings + mirrored) / 2
        return embeddings

    def _embed_one_way(self, network: GaitNetwork, frames: Tensor, lengths: list[int]) -> Tensor:
        whole = network.backbone.takes_whole_sequences
        pool = self._pool_clips if whole else self._pool_frames
        windows, counts = network.windows(lengths)
        strips = network.strips(pool(network, frames, windows).float())
        return network.matching(network.head.projection(mean_over_windows(strips, counts)))

    def _pool_frames(self, network: GaitNetwork, frames: Tensor, lengths: list[int]) -> Tensor:
        """Maps `[n, c, h, w]` of windows; a few frames at a time, from whatever window."""
        size, ends = self._frames_per_call, np.cumsum(lengths)
        # every window is cut into pieces where one call ends and the next begins
        cuts = np.union1d(ends, np.arange(size, ends[-1], size))
        pieces, calls, owners = (
            np.diff(cuts, prepend=0),
            (cuts - 1) // size,
            ends.searchsorted(cuts),
        )
        pooled = [
            network.backbone.over_sequences(
                _to_unit(chunk, network), torch.from_numpy(pieces[calls == call])
            )
            for call, chunk in enumerate(torch.split(frames, size))
        ]
        return max_over_sequences(torch.cat(pooled), torch.from_numpy(np.bincount(owners)))

    def _pool_clips(self, network: GaitNetwork, frames: Tensor, lengths: list[int]) -> Tensor:
        """Maps `[n, c, h, w]` of windows, which may not be cut, a few at a time."""
        batches: list[list[int]] = []
        for length in lengths:
            if not batches or sum(batches[-1]) + length > self._frames_per_call:
                batches.append([])
            batches[-1].append(length)
        chunks = torch.split(frames, [sum(batch) for batch in batches])
        return torch.cat(
            [
                network.backbone.over_sequences(_to_unit(chunk, network), torch.tensor(batch))
                for chunk, batch in zip(chunks, batches, strict=True)
            ]
        )

    def _error(self, exact: GaitNetwork) -> float:
        """The most that `exact` and the network in use differ in a part's cosine."""
        walk = torch.from_numpy(_trial_walk(self.card.input.height, self.card.input.width))
        with torch.inference_mode():
            ours, theirs = (
                self._embed(network, walk.to(self.device), [len(walk)])
                for network in (self._network, exact)
            )
            return 1 - float(functional.cosine_similarity(ours, theirs, dim=2).min())


def _in_bfloat16(network: GaitNetwork, *, keeps_last_stage: bool) -> GaitNetwork:
    """A copy that computes in bfloat16 up to the head, or up to the last stage.

    Where little tells people apart, as behind discriminants, the rounding of the last maps is most
    of the error; their stage is small in narrow networks and as fast in float32.
    """
    copied = copy.deepcopy(network)
    copied.backbone.to(torch.bfloat16)
    if keeps_last_stage:
        last, original = copied.backbone.last_stage, network.backbone.last_stage
        last.float().load_state_dict(original.state_dict())
        last.register_forward_pre_hook(lambda _, maps: (maps[0].float(),))
    return copied


def _to_unit(frames: Tensor, network: GaitNetwork) -> Tensor:
    """uint8 frames as the backbone takes them: in [0, 1], in the type of its weights."""
    weight = next(network.backbone.parameters())
    return (frames.float() / 255).to(weight.dtype)


def _trial_walk(height: int, width: int) -> Walk:
    """A trunk on two swinging legs, uint8 `[12, h, w]`."""
    frames = 12
    row, column = np.mgrid[0:height, 0:width] / height
    middle = width / height / 2
    swing = 0.12 * np.sin(np.arange(frames)[:, None, None] * 2 * np.pi / frames)
    trunk = ((column - middle) / 0.1) ** 2 + ((row - 0.3) / 0.28) ** 2 <= 1
    reach = swing * (row - 0.5)
    legs = (abs(column - middle - reach) < 0.04) | (abs(column - middle + reach) < 0.04)
    return np.where(trunk | (legs & (row > 0.5)), np.uint8(255), np.uint8(0))

"""A backbone as torch runs it: on GPUs, and what OpenVINO does not run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import (
    convert_conv2d_weight_memory_format,
    convert_conv3d_weight_memory_format,
)

from models.networks.network import FrameBackbone, SequenceBackbone
from models.networks.pooling import max_over_sequences

FRAMES_PER_CALL: Final = 1024
# More are slower there: pages of large activations are faulted in anew each time
FRAMES_PER_CALL_ON_CPU: Final = 20


class EagerBackbone:
    """Frames to the maximum over time of their maps.

    Args:
        backbone: in eval mode; it is not changed.
        device: where to compute.
        bfloat16: whether to compute in bfloat16.
        keeps_last_stage: but for the last stage. Where little tells people apart, as behind
            discriminants, the rounding of the last maps is most of the error; their stage is small
            in narrow networks and as fast in float32.
    """

    def __init__(
        self,
        backbone: FrameBackbone | SequenceBackbone,
        device: torch.device,
        *,
        bfloat16: bool,
        keeps_last_stage: bool = False,
    ) -> None:
        backbone = copy.deepcopy(backbone).to(device)
        convert_conv2d_weight_memory_format(backbone, torch.channels_last)
        convert_conv3d_weight_memory_format(backbone, torch.channels_last_3d)
        if bfloat16:
            last = copy.deepcopy(backbone.last_stage).state_dict()
            backbone.to(torch.bfloat16)
            if keeps_last_stage:
                backbone.last_stage.float().load_state_dict(last)
                backbone.last_stage.register_forward_pre_hook(lambda _, maps: (maps[0].float(),))
        self._backbone, self._device = backbone, device
        on_cpu = device.type == "cpu"
        self._frames_per_call = FRAMES_PER_CALL_ON_CPU if on_cpu else FRAMES_PER_CALL
        self._type = torch.bfloat16 if bfloat16 else torch.float32

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Float32 maps `[n, c, h', w']` of uint8 frames `[sum(lengths), h, w]`."""
        whole = self._backbone.takes_whole_sequences
        pool = self._pool_clips if whole else self._pool_frames
        return pool(frames.to(self._device), lengths).float()

    def _pool_frames(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """A few frames at a time, from whatever sequence."""
        size, ends = self._frames_per_call, np.cumsum(lengths)
        # every sequence is cut into pieces where one call ends and the next begins
        cuts = np.union1d(ends, np.arange(size, ends[-1], size))
        pieces, calls, owners = (
            np.diff(cuts, prepend=0),
            (cuts - 1) // size,
            ends.searchsorted(cuts),
        )
        pooled = [
            self._backbone.over_sequences(
                self._to_unit(chunk), torch.from_numpy(pieces[calls == call])
            )
            for call, chunk in enumerate(torch.split(frames, size))
        ]
        return max_over_sequences(torch.cat(pooled), torch.from_numpy(np.bincount(owners)))

    def _pool_clips(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Sequences, which may not be cut, a few at a time."""
        batches: list[list[int]] = []
        for length in lengths:
            if not batches or sum(batches[-1]) + length > self._frames_per_call:
                batches.append([])
            batches[-1].append(length)
        chunks = torch.split(frames, [sum(batch) for batch in batches])
        return torch.cat(
            [
                self._backbone.over_sequences(self._to_unit(chunk), torch.tensor(batch))
                for chunk, batch in zip(chunks, batches, strict=True)
            ]
        )

    def _to_unit(self, frames: Tensor) -> Tensor:
        """uint8 frames as the backbone takes them: in [0, 1]."""
        return (frames.float() / 255).to(self._type)

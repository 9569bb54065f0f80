"""The encoder: walks to embeddings, on one device, in one precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models import checkpoint
from models.card import Card
from models.encoder.compiled import CompiledBackbone
from models.encoder.eager import EagerBackbone
from models.networks.blocks import fold_batch_norm
from models.networks.device import computes_bfloat16, find_device
from models.networks.network import ClipBackbone, FrameBackbone, GaitNetwork
from models.networks.pooling import mean_over_windows

Walk = NDArray[np.uint8]
Precision = Literal["float32", "bfloat16", "int8"]
Backbone = Callable[[Tensor, Sequence[int]], Tensor]
"""Of uint8 frames `[sum(lengths), h, w]` and lengths: float32 maps `[n, c, h', w']`, the maximum
over time of each sequence's."""

BFLOAT16_MAX_COSINE_ERROR: Final = 1e-3
NO_POSE: Final = (
    "it reads pose maps beside silhouettes, which no upload has; it can teach, and be evaluated on "
    "a pack that has them"
)


class Encoder:
    """A checkpoint ready to embed walks. Safe to call from several threads.

    On a CPU OpenVINO runs the backbone of a GaitBase or DeepGaitV2, with as many threads as torch
    has when this is made; elsewhere torch does. Either way batch normalisation is folded into the
    convolutions.
    `precision="float32"` stays within 5e-6 (relative) of the plain network; `"bfloat16"` takes
    about half of the time where the processor computes in it. On a CPU a quantised checkpoint takes
    half of that again and comes nearer to the float32 one, under a digest of its own.

    Args:
        network: is taken over and changed; not to be used elsewhere afterwards.
        card: of `network`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …; `auto` is a GPU if there is one.
        precision: `auto` is bfloat16 on a GPU that has it, if that changes no part's cosine by more
            than 1e-3 on a trial walk, if need be with the last stage in float32; else float32. A
            quantised network has no choice: what is not of whole numbers is float32.

    Attributes:
        precision: of the backbone: as chosen, or `int8`.

    Raises:
        ValueError: the device is not there, or the precision is unknown or not the network's.
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
        quantised = network.config.quantised
        if quantised and precision == "bfloat16":
            raise ValueError(f"a network of {quantised} is not computed in bfloat16")
        self.card = card
        self.device = find_device(device)
        # One forward pass at a time: two would fight for the same cores or the same GPU
        self._lock = Lock()
        network = network.eval().requires_grad_(False)
        fold_batch_norm(network)
        self._network = network
        self._head = network.head.to(self.device)
        self._backbone = self._ready(bfloat16=False)
        self.precision: Precision = quantised or "float32"
        if precision == "bfloat16":
            self._backbone, self.precision = self._ready(bfloat16=True), "bfloat16"
        elif precision == "auto" and not quantised and self._rounds_unasked():
            for keeps_last_stage in (False, True):
                rounded = self._ready(bfloat16=True, keeps_last_stage=keeps_last_stage)
                if self._error(rounded) <= BFLOAT16_MAX_COSINE_ERROR:
                    self._backbone, self.precision = rounded, "bfloat16"
                    break

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
            ValueError: the device is not there, or the precision is unknown or not the network's.
        """
        return cls(*checkpoint.load(directory), device=device, precision=precision)

    @classmethod
    def for_uploads(cls, directory: Path, device: str = "auto") -> Self:
        """As `open`, of what can embed an upload.

        Raises:
            CheckpointError: the checkpoint can't be read.
            ValueError: it reads pose maps, or the device is not there.
        """
        encoder = cls.open(directory, device)
        if encoder.reads_pose:
            raise ValueError(NO_POSE)
        return encoder

    @property
    def digest(self) -> str:
        """Digest of the checkpoint. Embeddings of different digests can't be compared."""
        return self.card.digest

    @property
    def reads_pose(self) -> bool:
        """Whether walks are of pose maps and silhouettes, which no upload has."""
        return self.card.reads_pose

    def encode(self, walks: Sequence[Walk]) -> NDArray[np.float32]:
        """Embeddings of walks, in their order.

        Args:
            walks: uint8 `[s, h, w]` each, s at least 1; h and w as the card's input, or w wider by
                an even number of columns, which are cut off (64 x 64 becomes 64 x 44). Of a network
                that reads pose maps `[s, 3, h, w]`: limbs, joints, silhouette.

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
            return self._embed(self._backbone, frames, lengths).cpu().contiguous().numpy()

    def _fit(self, walk: Walk, position: int) -> Walk:
        size = self.card.input
        frame = self._network.frame_shape(size.height, size.width)
        if walk.dtype != np.uint8 or walk.ndim != 1 + len(frame) or len(walk) == 0:
            form = "[s, 3, h, w] (limbs, joints, silhouette)" if self.reads_pose else "[s, h, w]"
            raise ValueError(
                f"walk {position} must be uint8 {form} with a frame at least, "
                f"not {walk.dtype} {list(walk.shape)}"
            )
        margin, odd = divmod(walk.shape[-1] - size.width, 2)
        if walk.shape[1:-1] != frame[:-1] or margin < 0 or odd:
            raise ValueError(
                f"walk {position} has frames of {' x '.join(map(str, walk.shape[1:]))}, "
                f"the network wants {' x '.join(map(str, frame))}"
            )
        return walk[..., margin : walk.shape[-1] - margin]

    def _rounds_unasked(self) -> bool:
        """On CPUs not: OpenVINO's bfloat16 moves a real walk's part by up to 7e-3."""
        return self.device.type == "cuda" and computes_bfloat16(self.device)

    def _ready(self, *, bfloat16: bool, keeps_last_stage: bool = False) -> Backbone:
        backbone = self._network.backbone
        compiles = isinstance(backbone, FrameBackbone | ClipBackbone) and not self.reads_pose
        if self.device.type == "cpu" and compiles:
            threads = torch.get_num_threads()
            return CompiledBackbone(backbone, self.card.input, bfloat16=bfloat16, threads=threads)
        return EagerBackbone(
            backbone, self.device, bfloat16=bfloat16, keeps_last_stage=keeps_last_stage
        )

    def _embed(self, backbone: Backbone, frames: Tensor, lengths: list[int]) -> Tensor:
        """Embeddings `[n, p, c]` of uint8 frames `[sum(lengths), h, w]`."""
        embeddings = self._embed_one_way(backbone, frames, lengths)
        if self.card.mirror:
            mirrored = self._embed_one_way(backbone, frames.flip(-1), lengths)
            embeddings = (embeddings + mirrored) / 2
        return embeddings

    def _embed_one_way(self, backbone: Backbone, frames: Tensor, lengths: list[int]) -> Tensor:
        windows, counts = self._network.windows(lengths)
        strips = self._network.strips(backbone(frames, windows))
        return self._network.matching(self._head.projection(mean_over_windows(strips, counts)))

    def _error(self, rounded: Backbone) -> float:
        """The most that a part's cosine differs between `rounded` and the backbone in use."""
        shape = self._network.frame_shape(self.card.input.height, self.card.input.width)
        walk = torch.from_numpy(_trial_walk(*shape[-2:]))
        walk = walk.view(-1, *[1] * (len(shape) - 2), *shape[-2:]).expand(-1, *shape)
        with torch.inference_mode():
            ours, theirs = (
                self._embed(backbone, walk, [len(walk)]) for backbone in (rounded, self._backbone)
            )
            return 1 - float(functional.cosine_similarity(ours, theirs, dim=2).min())


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

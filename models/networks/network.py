"""What all gait networks have in common: sequences in, embeddings and logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.card import POSE_READERS
from models.networks.blocks import as_clips, max_over_time, of_silhouettes
from models.networks.head import GaitOutput, PartHead
from models.networks.pooling import (
    check_lengths,
    max_over_sequences,
    mean_over_windows,
    strip_pool,
    windows,
)

# Bounds keep a card from asking for a network that no machine can hold.
Width = Annotated[int, Field(ge=1, le=4096)]
Depth = Annotated[int, Field(ge=1, le=64)]
Stride = Annotated[int, Field(ge=1, le=2)]


class NetworkConfig(BaseModel):
    """What every architecture lets one choose; the defaults are the field's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: ClassVar[str]

    channels: tuple[Width, Width, Width, Width] = (64, 128, 256, 512)
    layers: tuple[Depth, Depth, Depth, Depth] = (1, 1, 1, 1)
    embedding_channels: Width = 256
    parts: Annotated[int, Field(ge=1, le=64)] = 16
    identities: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    embedding_source: Literal["embedding", "neck"] = "embedding"
    projection_norm: bool = False
    """Whether embeddings are normalised over the batch, all parts as one: GaitGL's first head."""
    classifier: Literal["cosine", "product"] = "cosine"
    """Logits: cosines behind the neck, or plain products of embeddings, as of GaitGL's first head,
    which are no cosines and which nothing is trained with here."""
    mixing: bool = False
    """Whether behind the neck each part reads all parts (see `training.derive.discriminant`)."""
    quantised: Literal["int8"] | None = None
    """Whether the backbone computes with whole numbers (see `models.networks.quantised`)."""
    window: Annotated[int, Field(ge=1)] | None = None
    """Frames that the maximum over time is taken of; longer sequences are the mean of windows.

    The maximum of many frames keeps the worst of their faults and is unlike that of the clips that
    were trained on. None, as the field has it: one maximum, however long the sequence.
    """


class FrameBackbone(nn.Module):
    """A backbone that sees each frame alone: sequences of any lengths share one batch of frames."""

    is_temporal: ClassVar[bool] = False
    takes_whole_sequences: ClassVar[bool] = False

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.entry: nn.Module = nn.Identity()  # a quantised network's whole numbers begin here
        self.stem = stem
        self.activation = nn.ReLU(inplace=True)
        self.stages = nn.Sequential(*stages)

    def forward(self, frames: Tensor) -> Tensor:
        """Feature maps `[f, c, h, w]` of frames `[f, 1, h, w]`."""
        maps: Tensor = self.stages(self.activation(self.stem(self.entry(frames))))
        return maps

    @property
    def last_stage(self) -> nn.Module:
        """The stage whose maps are pooled."""
        return self.stages[-1]

    @property
    def in_order(self) -> list[nn.Module]:
        """Its stages, without the stem."""
        return list(self.stages)

    def stage_maps(self, silhouettes: Tensor) -> list[Tensor]:
        """Behind each stage the maps `[n, c, s, h', w']` of clips `[n, s, h, w]`."""
        maps = torch.relu(self.stem(of_silhouettes(silhouettes.flatten(0, 1))))
        found = []
        for stage in self.stages:
            maps = stage(maps)
            found.append(as_clips(maps, silhouettes.shape[1]))
        return found

    def over_stages(self, maps: list[Tensor]) -> Tensor:
        """`stage_maps` to the maximum over time of the last, `[n, c, h, w]`."""
        return max_over_time(maps[-1])

    def over_clip(self, silhouettes: Tensor) -> Tensor:
        """Maximum over time of the maps of one clip `[s, h, w]`: `[c, h, w]`."""
        maps: Tensor = self(of_silhouettes(silhouettes))
        return maps.amax(0)

    def over_clips(self, silhouettes: Tensor) -> Tensor:
        """Maximum over time of the maps of clips `[n, s, h, w]`: `[n, c, h, w]`."""
        maps: Tensor = self(of_silhouettes(silhouettes.flatten(0, 1)))
        return max_over_time(as_clips(maps, silhouettes.shape[1]))

    def over_sequences(self, silhouettes: Tensor, lengths: Tensor) -> Tensor:
        """Maximum over time of the maps of sequences laid end to end, `[sum(lengths), h, w]`.

        No padding; returns `[n, c, h, w]`.
        """
        maps: Tensor = self(of_silhouettes(silhouettes))
        return max_over_sequences(maps, lengths)


class SequenceBackbone(nn.Module, ABC):
    """A backbone that needs all frames of a sequence at once: a stem and four stages.

    Sequences of different lengths run in groups of equal length. Laid end to end in one batch, or
    padded, they would read each other's frames or zeros (several per cent of the embedding). In
    training mode each group has batch statistics of its own, so give equal lengths where that
    matters.
    """

    is_temporal: ClassVar[bool]
    takes_whole_sequences: ClassVar[bool] = True
    stem: nn.Module

    @property
    @abstractmethod
    def in_order(self) -> list[nn.Module]:
        """Its stages, without the stem."""

    @property
    def last_stage(self) -> nn.Module:
        """The last module, of one argument, before features are pooled."""
        return self.in_order[-1]

    @abstractmethod
    def stage_maps(self, silhouettes: Tensor) -> list[Tensor]:
        """Behind each stage the maps `[n, c, s, h', w']` of clips `[n, s, h, w]`."""

    def over_stages(self, maps: list[Tensor]) -> Tensor:
        """`stage_maps` to what strips are pooled of, `[n, c, h, w]`: the maximum over time."""
        return max_over_time(maps[-1])

    def over_clips(self, silhouettes: Tensor) -> Tensor:
        """As `over_stages`, of clips `[n, s, h, w]`."""
        return self.over_stages(self.stage_maps(silhouettes))

    def over_clip(self, silhouettes: Tensor) -> Tensor:
        """As `over_clips`, of one clip `[s, h, w]`: `[c, h, w]`."""
        return self.over_clips(silhouettes.unsqueeze(0)).squeeze(0)

    def over_sequences(self, silhouettes: Tensor, lengths: Tensor) -> Tensor:
        """As `over_clips`, of sequences laid end to end, `[sum(lengths), h, w]`.

        Each sequence runs on its own; returns `[n, c, h, w]`.
        """
        sequences = torch.split(silhouettes, lengths.tolist())
        groups: dict[int, list[int]] = {}
        for position, sequence in enumerate(sequences):
            groups.setdefault(len(sequence), []).append(position)
        pooled = [
            self.over_clips(torch.stack([sequences[position] for position in members]))
            for members in groups.values()
        ]
        order = torch.tensor([position for members in groups.values() for position in members])
        return torch.cat(pooled)[order.argsort().to(silhouettes.device)]


class ClipBackbone(SequenceBackbone):
    """A backbone that mixes neighbouring frames, after a first stage that does not."""

    is_temporal: ClassVar[bool] = True

    def __init__(
        self, stem: nn.Module, first_stage: nn.Module, stages: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.entry: nn.Module = nn.Identity()  # a quantised network's whole numbers begin here
        self.stem = stem
        self.activation = nn.ReLU(inplace=True)
        self.frame_stage = first_stage
        self.clip_stages = nn.Sequential(*stages)

    def frames_of(self, clips: Tensor) -> Tensor:
        """All frames `[n * s, 1, h, w]` of clips."""
        return of_silhouettes(clips.flatten(0, 1))

    def forward(self, clips: Tensor) -> Tensor:
        """Feature maps `[n, c, s, h, w]` of clips `[n, s, h, w]`."""
        frames = self.entry(self.frames_of(clips))
        frames = self.activation(self.stem(frames))
        maps: Tensor = self.clip_stages(as_clips(self.frame_stage(frames), clips.shape[1]))
        return maps

    @property
    def in_order(self) -> list[nn.Module]:
        """Its stages, without the stem."""
        return [self.frame_stage, *self.clip_stages]

    def stage_maps(self, silhouettes: Tensor) -> list[Tensor]:
        """Behind each stage the maps `[n, c, s, h', w']` of clips `[n, s, h, w]`."""
        frames = torch.relu(self.stem(self.frames_of(silhouettes)))
        maps = as_clips(self.frame_stage(frames), silhouettes.shape[1])
        found = [maps]
        for stage in self.clip_stages:
            maps = stage(maps)
            found.append(maps)
        return found

    def over_clips(self, silhouettes: Tensor) -> Tensor:
        """Maximum over time of the maps of clips `[n, s, h, w]`: `[n, c, h, w]`."""
        maps: Tensor = self(silhouettes)
        return max_over_time(maps)


class GaitNetwork(nn.Module):
    """A backbone and a head: silhouettes of walks to part embeddings and identity logits.

    Args:
        config: of any architecture.
        backbone: silhouettes to maps.
        pooling: what the backbone gives of sequences to strips `[n, c, p]`; `strip_pool` if None.
    """

    def __init__(
        self,
        config: NetworkConfig,
        backbone: FrameBackbone | SequenceBackbone,
        pooling: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.pooling = pooling
        self.head = PartHead(
            config.channels[-1],
            config.embedding_channels,
            config.parts,
            config.identities,
            mixing=config.mixing,
            projection_norm=config.projection_norm,
            cosine=config.classifier == "cosine",
        )

    @property
    def parts(self) -> int:
        """Number of horizontal strips."""
        return self.config.parts

    @property
    def channels(self) -> int:
        """Width of an embedding's part."""
        return self.config.embedding_channels

    @property
    def identities(self) -> int:
        """Classes of the classifier."""
        return self.config.identities

    @property
    def is_temporal(self) -> bool:
        """Whether the order of frames matters."""
        return self.backbone.is_temporal

    @property
    def reads_pose(self) -> bool:
        """Whether frames are `[3, h, w]`, two pose maps and a silhouette, and not `[h, w]`."""
        return self.config.architecture in POSE_READERS

    def frame_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of one frame of so many rows and columns."""
        return (3, height, width) if self.reads_pose else (height, width)

    def forward(
        self, silhouettes: Tensor, lengths: Tensor | Sequence[int] | None = None
    ) -> GaitOutput:
        """Embeddings and logits of a batch of walks.

        Args:
            silhouettes: float in [0, 1]; `[n, s, h, w]`, or `[sum(lengths), h, w]` for sequences
                laid end to end. Of a network that reads pose maps `[3, h, w]` for each `[h, w]`:
                limbs, joints, silhouette.
            lengths: int64 `[n]` or ints, the frames of each sequence; only with the second form.

        Returns:
            Embeddings before the neck `[n, c, p]` (see `matching`) and cosine logits `[n, k, p]`.

        Raises:
            ValueError: a shape that is neither form, lengths that don't fit, or rows that cannot
                be divided as the network divides them.
        """
        output: GaitOutput = self.head(self.pool(silhouettes, lengths))
        return output

    def stages(self, silhouettes: Tensor) -> tuple[GaitOutput, list[Tensor]]:
        """As `forward`, and behind each stage the maps `[n, c, s, h', w']`.

        Args:
            silhouettes: clips `[n, s, h, w]`, short enough for one window.

        Raises:
            ValueError: the clips are cut into windows.
        """
        if self.windows([silhouettes.shape[1]])[1] != [1]:
            raise ValueError("the stages' maps are those of clips of one window")
        maps = self.backbone.stage_maps(silhouettes)
        output: GaitOutput = self.head(self.strips(self.backbone.over_stages(maps)))
        return output, maps

    def pool(self, silhouettes: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """What the head reads, `[n, c_in, p]`: features pooled over time and strips."""
        frame = "3, h, w" if self.reads_pose else "h, w"
        axes, shape = len(frame.split(",")), silhouettes.shape
        if self.reads_pose and shape[-3:-2] != (3,):
            raise ValueError(f"frames must be [3, h, w]: limbs, joints, silhouette; not {[*shape]}")
        if lengths is None:
            if silhouettes.ndim != 2 + axes or 0 in shape:
                raise ValueError(
                    f"without lengths, silhouettes must be [n, s, {frame}] and not empty, "
                    f"not {list(shape)}"
                )
            count, frames = silhouettes.shape[:2]
            if self.windows([frames])[1] == [1]:
                return self.strips(self.backbone.over_clips(silhouettes))
            silhouettes, lengths = silhouettes.flatten(0, 1), [frames] * count
        if silhouettes.ndim != 1 + axes:
            raise ValueError(
                f"with lengths, silhouettes must be [sum(lengths), {frame}], not {list(shape)}"
            )
        lengths = check_lengths(lengths, len(silhouettes))
        if self.config.window is None:
            return self.strips(self.backbone.over_sequences(silhouettes, lengths))
        cut, counts = self.windows(lengths.tolist())
        maps = self.backbone.over_sequences(silhouettes, torch.tensor(cut))
        return mean_over_windows(self.strips(maps), counts)

    def windows(self, lengths: Sequence[int]) -> tuple[list[int], list[int]]:
        """Lengths of what the maximum over time is taken of, and how many of each sequence."""
        if self.config.window is None:
            return list(lengths), [1] * len(lengths)
        return windows(lengths, self.config.window)

    def strips(self, maps: Tensor) -> Tensor:
        """Maps of sequences `[n, c, h, w]` pooled over strips, `[n, c, p]`."""
        if self.pooling is None:
            return strip_pool(maps, self.parts)
        pooled: Tensor = self.pooling(maps)
        return pooled

    def matching(self, embeddings: Tensor) -> Tensor:
        """What is compared, `[n, p, c]`: the embeddings, or the neck's if so configured.

        Here embeddings leave the network and change from its layout to that of everything else,
        see `models.encoder`.

        Args:
            embeddings: `[n, c, p]`, as `forward` returns them.
        """
        if self.config.embedding_source == "neck":
            embeddings = self.head.unit_embeddings(embeddings)
        return embeddings.transpose(1, 2)

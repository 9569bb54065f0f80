"""A checkpoint's card: what must be known to rebuild a network, feed it and judge its answers.

    CheckpointError (ValueError)   not a checkpoint, or one that can't be read
    └── CheckpointMismatch         weights, card and digest don't belong together

Imports no torch: a card can be read without the network that it describes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
)

CARD: Final = "card.json"
WEIGHTS: Final = "weights.safetensors"
MAX_CARD_BYTES: Final = 1 << 20
NAMED_FAULTS: Final = 8  # of a long list
POSE_READERS: Final = frozenset({"skeletongaitpp"})
"""Architectures that read pose maps: frames of `[3, h, w]`, limbs, joints and silhouette."""

Metric = Literal["cosine", "euclidean"]
"""How embeddings are compared, see `models.comparison.similarity`."""
Similarity = Annotated[FiniteFloat, Field(ge=-1, le=1)]


class CheckpointError(ValueError):
    """A folder is not a checkpoint, or can't be read as one."""


class CheckpointMismatch(CheckpointError):
    """Weights, card and digest don't belong together."""


@dataclass(frozen=True, slots=True)
class ModelReference:
    """Which checkpoint is meant: its name for people, its digest for comparisons."""

    name: str
    digest: str


class InputSize(BaseModel):
    """The silhouettes a network was trained on, in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: Annotated[int, Field(ge=1, le=1024)] = 64
    width: Annotated[int, Field(ge=1, le=1024)] = 44


class CardThreshold(BaseModel):
    """The similarity at which strangers are matched with a given probability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_fpir: Annotated[float, Field(gt=0, lt=1)]
    gallery_subjects: Annotated[int, Field(ge=1, le=10**9)]
    threshold: Similarity


class Card(BaseModel):
    """What must be known to rebuild a network, feed it and judge its answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=128)]
    architecture: Annotated[str, Field(max_length=64)]
    config: dict[str, JsonValue]
    input: InputSize = InputSize()
    metric: Metric
    parts: PositiveInt
    channels: PositiveInt
    identities: NonNegativeInt
    mirror: bool = False  # compare the mean embedding of a walk and of its mirror image
    threshold: Similarity | None = None  # None: not calibrated
    thresholds: Annotated[tuple[CardThreshold, ...], Field(max_length=100)] = ()
    training: dict[str, JsonValue] = {}
    metrics: dict[str, JsonValue] = {}
    notes: Annotated[str, Field(max_length=10_000)] = ""
    digest: Annotated[str, Field(max_length=64)] = ""

    @property
    def reads_pose(self) -> bool:
        """Whether walks need pose maps beside their silhouettes, which no upload has."""
        return self.architecture in POSE_READERS

    @property
    def reference(self) -> ModelReference:
        """The name and digest of the checkpoint."""
        return ModelReference(self.name, self.digest)


def read_card(directory: Path) -> Card:
    """The card alone. Its digest is not compared with the weights: that is `load`'s work.

    Raises:
        CheckpointError: the card is missing, broken or too large.
    """
    return read_fields(directory)[1]


def summary(faults: list[str]) -> str:
    """The first few of many faults in one sentence."""
    more = f" and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
    return "; ".join(faults[:NAMED_FAULTS]) + more


def read_fields(directory: Path) -> tuple[dict[str, object], Card]:
    """The card as written, for the digest, and as understood.

    Raises:
        CheckpointError: the card is missing, broken or too large.
    """
    path = directory / CARD
    content = read_file(path, MAX_CARD_BYTES)
    try:
        fields = json.loads(content)
        # half of a surrogate pair is escaped text in a file, and nothing that can be sent on
        json.dumps(fields, ensure_ascii=False).encode()
        return fields, Card.model_validate(fields)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint's card: {error}") from error


def digest_of(weights_sha256: bytes, fields: Mapping[str, object]) -> str:
    """SHA-256 over that of the weights and over the card without its digest, in canonical JSON.

    Over the fields as written, not as understood: a later version of `Card` with new optional
    fields must still accept the digests of today.
    """
    canonical = json.dumps(
        {key: value for key, value in fields.items() if key != "digest"},
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(weights_sha256 + canonical.encode()).hexdigest()


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a checkpoint's file.

    Raises:
        CheckpointError: it is missing, or larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > limit:
        raise CheckpointError(f"{path} is larger than {limit} bytes")
    return content

"""What a recipe may say about clips and augmentation. No torch: recipes are checked without it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

Probability = Annotated[float, Field(ge=0, le=1)]


class OrderedClip(BaseModel):
    """A fixed number of frames in their order (`fixed_ordered` in OpenGait).

    The frames are drawn without replacement, and kept in order, from a random window of
    `frames + skip` consecutive frames. A shorter sequence is repeated from its start first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ordered"] = "ordered"
    frames: PositiveInt = 30
    skip: NonNegativeInt = 0


class UnorderedClip(BaseModel):
    """A fixed number of frames in random order (`fixed_unordered`).

    Without replacement, unless the sequence has fewer frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["unordered"] = "unordered"
    frames: PositiveInt = 30


class RandomLengthClip(BaseModel):
    """`least` to `most` frames in random order, drawn for each sequence (`unfixed_unordered`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["random_length"] = "random_length"
    least: PositiveInt = 10
    most: PositiveInt = 50

    @model_validator(mode="after")
    def _least_is_not_more_than_most(self) -> RandomLengthClip:
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) is more than most ({self.most})")
        return self


Clip = Annotated[OrderedClip | UnorderedClip | RandomLengthClip, Field(discriminator="kind")]


class Augmentation(BaseModel):
    """How silhouettes are varied in training. With every probability at 0 nothing is changed.

    Probabilities are per sequence, unless a field says per frame. The defaults are the published
    training recipe for outdoor sets (GaitBase and DeepGaitV2 on Gait3D, GREW; OpenGait's
    `RandomPerspective`, `RandomHorizontalFlip`, `RandomRotate` at 0.2 each); `none()` is no
    augmentation and `faults()` adds what person segmenters get wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Geometry, one homography for all frames of a sequence.
    flip: Probability = 0.2
    perspective: Probability = 0.2
    perspective_columns: Annotated[int, Field(ge=1, le=21)] = 10  # corners move inwards by fewer
    rotate: Probability = 0.2
    rotate_degrees: Annotated[float, Field(ge=0, le=45)] = 10.0
    shift: Probability = 0.0
    shift_pixels: Annotated[float, Field(ge=0, le=16)] = 3.0
    scale: Probability = 0.0
    scale_range: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # factor in [1 - r, 1 + r]

    # A rectangle erased in every frame (OpenGait's RandomErasing).
    erase: Probability = 0.0
    erase_area: tuple[NonNegativeFloat, NonNegativeFloat] = (0.05, 0.2)  # share of 64 x 44
    erase_aspect: Annotated[float, Field(gt=0, le=1)] = 0.3  # height / width in [a, 1 / a]

    # Outline: a horizontal part of the body grown, shrunk or blurred in every frame.
    dilate: Probability = 0.0
    erode: Probability = 0.0
    blur: Probability = 0.0
    part_rows: tuple[PositiveInt, PositiveInt] = (12, 24)

    # A segmenter's faults, which come and go.
    strips: Probability = 0.0  # a strip lost (head, feet, a chunk) for some consecutive frames
    strip_rows: tuple[PositiveInt, PositiveInt] = (3, 12)
    strip_frames: tuple[Probability, Probability] = (0.1, 0.5)  # share of the clip
    holes: Probability = 0.0  # holes in some frames
    holes_frames: Probability = 0.3  # per frame, in a sequence that has holes
    hole_pixels: tuple[PositiveInt, PositiveInt] = (2, 8)
    drop: Probability = 0.0  # some frames lost: the frame before stands in
    drop_frames: Probability = 0.15  # per frame, in a sequence that loses frames

    @classmethod
    def none(cls) -> Augmentation:
        """No augmentation at all."""
        return cls(flip=0, perspective=0, rotate=0)

    @classmethod
    def faults(cls) -> Augmentation:
        """The published recipe and a segmenter's faults, each for a fifth of the sequences."""
        return cls(
            shift=0.2, scale=0.2, dilate=0.2, erode=0.2, strips=0.2, holes=0.2, drop=0.2
        )  # fmt: skip

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> Augmentation:
        ranges = ("erase_area", "part_rows", "strip_rows", "strip_frames", "hole_pixels")
        for name in ranges:
            least, most = getattr(self, name)
            if least > most:
                raise ValueError(f"{name}: {least} is more than {most}")
        for name in ("part_rows", "strip_rows", "hole_pixels"):
            if getattr(self, name)[1] > 44:
                raise ValueError(f"{name}: at most 44, the width of a silhouette")
        if self.erase_area[1] >= 1:
            raise ValueError("erase_area: a share of the silhouette, less than 1")
        return self

    @classmethod
    def strong(cls) -> Augmentation:
        """Far from what was walked, for a second view: always turned, moved and cut into."""
        return cls(
            perspective=1.0, rotate=1.0, shift=1.0, scale=1.0, dilate=0.5, blur=0.5,
            strips=0.5, strip_frames=(1.0, 1.0), drop=1.0, drop_frames=0.33,
        )  # fmt: skip


class Swap(BaseModel):
    """Two walks of one person exchange patches, the same in all frames.

    Rows of four pixels by default; a grid of several columns exchanges patches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: Probability = 0.5  # per pair
    share: tuple[Probability, Probability] = (0.2, 0.5)  # of the patches
    rows: Annotated[int, Field(ge=1, le=64)] = 16
    columns: Annotated[int, Field(ge=1, le=64)] = 1
    same_view: bool = False  # only walks seen from one view, whose seams fit

    @model_validator(mode="after")
    def _share_is_in_order(self) -> Swap:
        if self.share[0] > self.share[1]:
            raise ValueError(f"share: {self.share[0]} is more than {self.share[1]}")
        if self.rows * self.columns < 2:
            raise ValueError("one patch is the whole walk: more rows or columns")
        return self


class Masking(BaseModel):
    """What a student must do without: strips of the body, or frames."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: Probability = 0.5  # per sequence
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the strips, or of the frames
    rows: Annotated[int, Field(ge=2, le=64)] = 16  # strips; half of the sequences lose frames

"""What a rendered dataset is made of: one typed file, from which it can be made again."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator

Split = Literal["train", "validation", "test"]
Collection = Literal["cmu", "rueangsirarak"]

_SHARES: Final[dict[Split, tuple[int, int]]] = {
    "train": (0, 68),
    "validation": (68, 82),
    "test": (82, 100),
}
_DEAL: Final = 1
"""One of the ways to deal walkers out to the splits, which gives each some of both collections."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Section):
    """From `low` to `high`, both included."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Walks(_Section):
    """The walks of one identity.

    Attributes:
        normal: walks in everyday clothes (condition `nm`).
        bag: walks with something carried (`bg`).
        coat: walks with a coat or other clothes that change the outline (`cl`).
        frames: frames a walk, before the segmenter drops some.
        fps: frames a second of the camera.
        tall: height of the person in the camera's image, in pixels: how coarse the outline is.
        turning: share of walks on a curve.
        unburdened: share of normal walks in which the arms swing freely (no phone, no hands in
            pockets).
    """

    normal: PositiveInt = 5
    bag: int = Field(default=2, ge=0)
    coat: int = Field(default=2, ge=0)
    frames: Range = Range(low=24, high=36)
    fps: Range = Range(low=12, high=30)
    tall: Range = Range(low=50, high=120)
    turning: float = Field(default=0.1, ge=0, le=1)
    unburdened: float = Field(default=0.93, ge=0, le=1)


class Scenes(_Section):
    """Places in which several people are filmed alike.

    Attributes:
        people: how many people, one after another by number, are filmed in the same scenes.
        each: scenes in which each of them is filmed, the walks of each kind in turn.
    """

    people: PositiveInt = 20
    each: PositiveInt = 5


class RenderRecipe(_Section):
    """A rendered dataset.

    Attributes:
        seed: every draw follows from it, from the split and from the identity's number.
        split: which recorded walkers may be used; the three splits share none.
        collections: which motion-capture collections may be used.
        identities: how many people.
        gait_spread: width of the draws of ways of walking; 1 is about as wide as people are.
        body_spread: width of the draws of bodies.
        walk_jitter: how differently one person walks from one walk to the next.
        severity: of the segmenter's faults; 0 none, 1 as old background subtraction.
        walks: the walks of one identity.
        scenes: each walk is filmed in one of these; if None it has a camera, faults and season of
            its own.
        pose_maps: whether limbs and joints are drawn as well (see `training.rendering.pose`).
        mocap: folder of the recordings, when the command line names none.
    """

    seed: int = Field(ge=0)
    split: Split
    collections: tuple[Collection, ...] = ("cmu", "rueangsirarak")
    identities: PositiveInt
    gait_spread: NonNegativeFloat = 1.0
    body_spread: NonNegativeFloat = 1.3
    walk_jitter: NonNegativeFloat = 1.0
    severity: NonNegativeFloat = 1.0
    walks: Walks = Walks()
    scenes: Scenes | None = None
    pose_maps: bool = False
    mocap: Path | None = None

    @classmethod
    def load(cls, path: Path) -> RenderRecipe:
        """Read a TOML recipe.

        Raises:
            OSError: the file can't be read.
            ValueError: it is no TOML, or no recipe (pydantic's ValidationError is one).
        """
        return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))

    @property
    def digest(self) -> str:
        """Names all that decides what is drawn, but not how many or where the recordings lie."""
        kept_out = {"identities", "mocap"}
        # Recipes of before there were scenes and pose maps keep their names.
        if self.scenes is None:
            kept_out.add("scenes")
        if not self.pose_maps:
            kept_out.add("pose_maps")
        fixed = self.model_dump_json(exclude=kept_out)
        return hashlib.sha256(fixed.encode()).hexdigest()[:12]

    def uses(self, walker: str) -> bool:
        """Whether a recorded walker belongs to this recipe's split and collections.

        The split follows from the walker's name alone, so further recordings move nobody to another
        split.
        """
        if walker.partition("-")[0] not in self.collections:
            return False
        low, high = _SHARES[self.split]
        digest = hashlib.sha256(f"{_DEAL}:{walker}".encode()).digest()
        place = int.from_bytes(digest[:4], "big") % 100
        return low <= place < high

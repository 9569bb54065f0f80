"""Scenes: what everybody who is filmed in one place has in common, each drawn from a number.

A scene is a camera, a segmenter with its kinds of faults, a path and a season. The same people are
filmed in several, in which they differ from themselves as strangers differ there from themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from training.rendering.camera import Camera, draw_camera
from training.rendering.clothing import Fashion, draw_fashion
from training.rendering.faults import Faults, draw_faults, faults_again
from training.rendering.recipe import Range, RenderRecipe, Split

_SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
_SCENES: Final = 1
"""Tells the seeds of scenes from those of identities."""
_FRAMES: Final = 30
"""Of the walk for which a scene's faults are drawn."""
_AT_RIGHT_ANGLES: Final = 0.4


@dataclass(frozen=True)
class Scene:
    """Where and when several people are filmed.

    Attributes:
        name: unique among all scenes of a split and seed.
        camera: for a walk along the path, one way.
        faults: of the segmenter, for a walk of 30 frames.
        fashion: of the season.
        fps: frames a second.
        tall: pixels of a person where tallest.
    """

    name: str
    camera: Camera
    faults: Faults
    fashion: Fashion
    fps: float
    tall: float

    def camera_of(self, rng: np.random.Generator) -> Camera:
        """The camera for one walk, to or fro and nearly along the path."""
        back = 180.0 if rng.random() < 0.5 else 0.0
        return Camera(
            azimuth=float((self.camera.azimuth + back + rng.normal(0.0, 4.0)) % 360.0),
            distance=float(self.camera.distance * np.exp(rng.normal(0.0, 0.08))),
            height=self.camera.height,
            roll=self.camera.roll,
            aim=self.camera.aim,
            lens=self.camera.lens,
            width=self.camera.width,
        )

    def faults_of(self, rng: np.random.Generator, *, frames: int) -> Faults:
        """What the segmenter does to one walk."""
        return faults_again(self.faults, _FRAMES, rng, frames=frames)


def draw_scene(recipe: RenderRecipe, number: int) -> Scene:
    """Scene `number` of a recipe."""
    seed = [recipe.seed, _SPLITS.index(recipe.split), number, _SCENES]
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    azimuth = float(rng.uniform(0.0, 360.0))
    if rng.random() < _AT_RIGHT_ANGLES:  # people set cameras up so
        azimuth = float(45 * rng.integers(8) + rng.normal(0.0, 6.0)) % 360.0
    usual = draw_camera(rng, azimuth)
    camera = Camera(
        azimuth,
        usual.distance,
        usual.height,
        usual.roll,
        aim=float(0.9 + 0.12 * usual.distance * rng.uniform(-0.5, 1.0)),
        lens=float(rng.choice([0.0, rng.uniform(-0.35, 0.1)])),
        width=float(rng.triangular(0.9, 1.0, 1.1)),
    )
    return Scene(
        name=f"{recipe.split}-scene-{number:05d}",
        camera=camera,
        faults=draw_faults(rng, frames=_FRAMES, severity=recipe.severity),
        fashion=draw_fashion(rng),
        fps=_within(rng, recipe.walks.fps),
        tall=_within(rng, recipe.walks.tall),
    )


def scenes_of(recipe: RenderRecipe, number: int) -> list[Scene]:
    """The scenes in which identity `number` is filmed; none if the recipe has no scenes."""
    if recipe.scenes is None:
        return []
    first = number // recipe.scenes.people * recipe.scenes.each
    return [draw_scene(recipe, first + which) for which in range(recipe.scenes.each)]


def _within(rng: np.random.Generator, bounds: Range) -> float:
    return float(rng.uniform(bounds.low, bounds.high))

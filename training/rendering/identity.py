"""An identity, a body and a way of walking, and the silhouettes of its walks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.silhouettes.normalise import normalise
from training.rendering import raster
from training.rendering.body import Body, BodyModel, draw_phenotype, posed
from training.rendering.camera import draw_camera, turned
from training.rendering.clothing import (
    Carried,
    Outfit,
    draw_carried,
    draw_coat,
    draw_outfit,
    dressed,
    jittered_outfit,
)
from training.rendering.cycles import GaitCycle
from training.rendering.faults import MARGIN, Frames, draw_faults, spoil
from training.rendering.gait import Arms, GaitStyle, draw_style, jittered, walk
from training.rendering.recipe import Range, RenderRecipe
from training.rendering.skeleton import Floats

_SPLITS = ("train", "validation", "test")
_FEWEST_FRAMES = 12
_VIEW_STEP = 15


@dataclass(frozen=True)
class Identity:
    """Who walks.

    Attributes:
        number: of the identity in its recipe.
        walker: the recorded walker with the largest share in the gait.
        body: naked, in the reference stance.
        style: way of walking.
        outfit: everyday clothes.
    """

    number: int
    walker: str
    body: Body
    style: GaitStyle
    outfit: Outfit


@dataclass(frozen=True)
class RenderedWalk:
    """One sequence.

    Attributes:
        condition: `nm-01`, `bg-02`, `cl-01` …
        view: azimuth in degrees, rounded to 15, three digits.
        frames: what the segmenter left, uint8 0/255 `[s, h, w]`, one person a frame.
        metadata: how it was made.
    """

    condition: str
    view: str
    frames: Frames
    metadata: dict[str, Any]

    def prepared(self) -> Frames:
        """The silhouettes as networks take them, uint8 0/255 `[s, 64, 64]`; frames without a person are left out."""
        normalised = [silhouette for frame in self.frames if (silhouette := normalise(frame)) is not None]
        if not normalised:
            return np.zeros((0, 64, 64), np.uint8)
        return (np.stack(normalised) >= 128).astype(np.uint8) * np.uint8(255)


def draw_identity(
    recipe: RenderRecipe,
    number: int,
    walkers: Mapping[str, Sequence[GaitCycle]],
    bodies: BodyModel,
) -> tuple[Identity, np.random.Generator]:
    """Draw identity `number` of a recipe, and the generator its walks are drawn from."""
    seed = np.random.SeedSequence([recipe.seed, _SPLITS.index(recipe.split), number])
    rng = np.random.default_rng(seed)
    style, walker = draw_style(rng, walkers, spread=recipe.gait_spread)
    body = bodies.body(draw_phenotype(rng, spread=recipe.body_spread))
    return Identity(number, walker, body, style, draw_outfit(rng)), rng


def render_walks(
    identity: Identity, recipe: RenderRecipe, rng: np.random.Generator
) -> Iterator[RenderedWalk]:
    """Render all walks of an identity, in a fixed order."""
    counts = {"nm": recipe.walks.normal, "bg": recipe.walks.bag, "cl": recipe.walks.coat}
    conditions = [(kind, take) for kind, count in counts.items() for take in range(count)]
    # Views spread over the whole circle, so that an identity is seen from nearly everywhere.
    start = rng.uniform(0.0, 360.0)
    azimuths = start + 360.0 * rng.permutation(len(conditions)) / len(conditions)
    for (kind, take), azimuth in zip(conditions, azimuths, strict=True):
        # Cameras at right angles and on the path are what people set up.
        usual = rng.choice([0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0])
        at = usual + rng.normal(0.0, 6.0) if rng.random() < 0.4 else azimuth
        for _ in range(8):
            rendered = _render(identity, recipe, rng, kind, take, float(at % 360.0))
            if rendered is not None:
                yield rendered
                break


def _render(
    identity: Identity,
    recipe: RenderRecipe,
    rng: np.random.Generator,
    kind: str,
    take: int,
    azimuth: float,
) -> RenderedWalk | None:
    """One walk, or None where the segmenter left too little of it."""
    plan = recipe.walks
    outfit, carried = _dress(identity, plan.unburdened, kind, rng)
    body = dressed(identity.body, outfit, carried)
    frames = round(_draw(rng, plan.frames))
    fps = _draw(rng, plan.fps)
    stride = walk(
        jittered(identity.style, rng, amount=recipe.walk_jitter),
        rng,
        frames=frames,
        fps=fps,
        arms=carried.arms if carried else Arms(),
    )
    vertices = posed(body, stride.pose)
    leg = body.leg_length
    curve = rng.normal(0.0, 0.35) if rng.random() < plan.turning else 0.0
    vertices = _on_path(vertices, stride.ahead * leg, stride.sway * leg, curve)
    camera = draw_camera(rng, azimuth)
    tall = _draw(rng, plan.tall)
    points = camera.project(vertices, tall=50.0)
    outlines, path = _framed(points, body.faces, tall)
    faults = draw_faults(rng, frames=frames, severity=recipe.severity)
    seen = spoil(outlines, faults, path, rng)
    area = (seen > 0).sum(axis=(1, 2))
    usual = np.median((outlines > 0).sum(axis=(1, 2)))
    seen = seen[area > 0.35 * usual]
    if len(seen) < min(_FEWEST_FRAMES, frames // 2):
        return None
    view = int(round(azimuth / _VIEW_STEP) * _VIEW_STEP) % 360
    return RenderedWalk(
        condition=f"{kind}-{take + 1:02d}",
        view=f"{view:03d}",
        frames=seen,
        metadata={
            "walker": identity.walker,
            "azimuth": round(azimuth, 1),
            "distance": round(camera.distance, 2),
            "camera_height": round(camera.height, 2),
            "fps": round(fps, 2),
            "carried": carried.kind if carried else None,
        },
    )


def _draw(rng: np.random.Generator, range_: Range) -> float:
    return float(rng.uniform(range_.low, range_.high))


def _dress(
    identity: Identity, unburdened: float, kind: str, rng: np.random.Generator
) -> tuple[Outfit, Carried | None]:
    worn = jittered_outfit(identity.outfit, rng)
    if kind == "bg":
        return worn, draw_carried(rng)
    if kind == "cl":
        return draw_coat(rng, worn), None
    if rng.random() < unburdened:
        return worn, None
    habit = "phone" if rng.random() < 0.4 else "pockets"
    side = "left" if rng.random() < 0.5 else "right"
    return worn, Carried(kind=habit, side=side, size=1.0, depth=1.0)


def _on_path(
    vertices: NDArray[np.float32], ahead: Floats, sway: Floats, curve: float
) -> NDArray[np.float32]:
    """Move the walker along a path whose middle is at the origin and leads along x; `curve` is its turn in radians."""
    progress = (ahead - ahead.mean()) / max(float(np.ptp(ahead)), 1e-6)
    heading = curve * progress
    step = np.diff(ahead, prepend=ahead[0])
    path = np.cumsum(np.stack([np.cos(heading) * step, np.sin(heading) * step], axis=1), axis=0)
    path -= path[len(path) // 2]
    path += sway[:, None] * np.stack([-np.sin(heading), np.cos(heading)], axis=1)
    return turned(path, vertices, heading)


def _framed(
    points: NDArray[np.float32], faces: NDArray[np.int64], tall: float
) -> tuple[Frames, Floats]:
    """Rasterise with the person in the middle of every frame, the tallest frame `tall` pixels high.

    Returns:
        Outlines `[s, h, w]`, and the way of the person across the image in pixels `[s]`.
    """
    low, high = points.min(axis=1), points.max(axis=1)
    size = (high - low).max(axis=0)
    scale = np.float32(tall / size[1])
    height = int(np.ceil(tall)) + 2 * MARGIN + 1
    width = int(np.ceil(size[0] * scale)) + 2 * MARGIN + 1
    middle = (low + high) / 2
    points = (points - middle[:, None, :]) * scale + np.array([width / 2, height / 2], np.float32)
    outlines = raster.fill(points, faces, height=height, width=width)
    return outlines, (middle[:, 0] * scale).astype(np.float64)

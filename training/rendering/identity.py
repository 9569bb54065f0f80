"""An identity, a body and a way of walking, and the silhouettes of its walks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.silhouettes.cleaning import clean
from models.silhouettes.normalise import normalise
from training.rendering import raster
from training.rendering.body import Body, BodyModel, draw_phenotype, posed
from training.rendering.camera import Camera, draw_camera, turned
from training.rendering.clothing import (
    Carried,
    Outfit,
    Side,
    draw_carried,
    draw_coat,
    draw_outfit,
    dressed,
    in_fashion,
    jittered_outfit,
)
from training.rendering.cycles import GaitCycle
from training.rendering.faults import (
    MARGIN,
    Faults,
    Frames,
    draw_faults,
    handed_over,
    segmented,
)
from training.rendering.gait import Arms, GaitStyle, draw_style, jittered, walk
from training.rendering.pose import joints_of, pose_maps
from training.rendering.recipe import Range, RenderRecipe
from training.rendering.scenes import Scene, scenes_of
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
class Shot:
    """How one walk is filmed and segmented.

    Attributes:
        style: the identity's way of walking on this occasion.
        outfit: what is worn.
        carried: what is carried.
        camera: where from.
        frames: how many, before the segmenter drops some.
        fps: frames a second.
        tall: pixels of the person where tallest.
        curve: radians the path turns by.
        faults: the segmenter's.
    """

    style: GaitStyle
    outfit: Outfit
    carried: Carried | None
    camera: Camera
    frames: int
    fps: float
    tall: float
    curve: float
    faults: Faults


@dataclass(frozen=True)
class Footage:
    """What the camera saw.

    Attributes:
        outlines: true outlines, the person in the middle of each frame, uint8 0/255 `[s, h, w]`.
        middles: where the person's middle is in the whole image, pixels right and down `[s, 2]`.
        joints: as `Camera.project` gives them, `[s, 17, 2]`, if wanted.
    """

    outlines: Frames
    middles: Floats
    joints: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class RenderedWalk:
    """One sequence.

    Attributes:
        condition: `nm-01`, `bg-02`, `cl-01` …
        view: azimuth in degrees, rounded to 15, three digits.
        frames: what the segmenter handed over, uint8 0/255 `[s, h, w]`.
        silhouettes: the same cleaned and normalised as an upload would be, uint8 0/255
            `[s, 64, 64]`; the frames that cleaning drops are left out.
        metadata: how it was made.
        pose_maps: of the same frames, limbs and joints, uint8 `[s, 2, 64, 64]`, if wanted.
    """

    condition: str
    view: str
    frames: Frames
    silhouettes: Frames
    metadata: dict[str, Any]
    pose_maps: NDArray[np.uint8] | None = None


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
    scenes = scenes_of(recipe, identity.number)
    for number, ((kind, take), azimuth) in enumerate(zip(conditions, azimuths, strict=True)):
        scene = scenes[number % len(scenes)] if scenes else None
        # Cameras at right angles and on the path are what people set up.
        usual = rng.choice([0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0])
        at = usual + rng.normal(0.0, 6.0) if rng.random() < 0.4 else azimuth
        for _ in range(8):
            rendered = _render(identity, recipe, rng, kind, take, float(at % 360.0), scene)
            if rendered is not None:
                yield rendered
                break


def film(
    identity: Identity, shot: Shot, rng: np.random.Generator, *, joints: bool = False
) -> Footage:
    """Let an identity walk past a camera; `joints` are recorded too if wanted."""
    body = dressed(identity.body, shot.outfit, shot.carried)
    count = len(body.vertices)
    if joints:
        body = body.with_parts([joints_of(identity.body)])
    arms = shot.carried.arms if shot.carried else Arms()
    stride = walk(shot.style, rng, frames=shot.frames, fps=shot.fps, arms=arms)
    ahead, sway = stride.ahead * body.leg_length, stride.sway * body.leg_length
    vertices = _on_path(posed(body, stride.pose), ahead, sway, shot.curve)
    points = shot.camera.project(vertices)
    footage = _framed(points[:, :count], body.faces, shot.tall)
    return replace(footage, joints=points[:, count:]) if joints else footage


def _render(
    identity: Identity,
    recipe: RenderRecipe,
    rng: np.random.Generator,
    kind: str,
    take: int,
    azimuth: float,
    scene: Scene | None,
) -> RenderedWalk | None:
    """One walk, or None if the segmenter left too little of it; a scene has its own azimuth."""
    plan = recipe.walks
    worn = in_fashion(identity.outfit, scene.fashion, rng) if scene else identity.outfit
    outfit, carried = _dress(worn, plan.unburdened, kind, rng)
    frames = round(_draw(rng, plan.frames))
    shot = Shot(
        style=jittered(identity.style, rng, amount=recipe.walk_jitter),
        outfit=outfit,
        carried=carried,
        camera=scene.camera_of(rng) if scene else draw_camera(rng, azimuth),
        frames=frames,
        fps=scene.fps if scene else _draw(rng, plan.fps),
        tall=scene.tall if scene else _draw(rng, plan.tall),
        curve=float(rng.normal(0.0, 0.35)) if rng.random() < plan.turning else 0.0,
        faults=(
            scene.faults_of(rng, frames=frames)
            if scene
            else draw_faults(rng, frames=frames, severity=recipe.severity)
        ),
    )
    footage = film(identity, shot, rng, joints=recipe.pose_maps)
    seen = segmented(footage.outlines, shot.faults, footage.middles[:, 0], rng)
    handed = handed_over(shot.faults, len(seen), rng)
    seen = seen[handed]
    silhouettes, kept = _prepared(seen)
    if len(silhouettes) < min(_FEWEST_FRAMES, frames // 2):
        return None
    azimuth = shot.camera.azimuth
    view = int(round(azimuth / _VIEW_STEP) * _VIEW_STEP) % 360
    return RenderedWalk(
        condition=f"{kind}-{take + 1:02d}",
        view=f"{view:03d}",
        frames=seen,
        silhouettes=silhouettes,
        metadata={
            "walker": identity.walker,
            "azimuth": round(azimuth, 1),
            "distance": round(shot.camera.distance, 2),
            "camera_height": round(shot.camera.height, 2),
            "fps": round(shot.fps, 2),
            "carried": carried.kind if carried else None,
            **({"scene": scene.name} if scene else {}),
        },
        pose_maps=None if footage.joints is None else pose_maps(footage.joints[handed[kept]]),
    )


def _prepared(frames: Frames) -> tuple[Frames, NDArray[np.int64]]:
    """Silhouettes, and of which frames they are."""
    cleaned = clean(list(frames))
    normalised = [
        (silhouette, place)
        for strip, place in zip(cleaned.strips, cleaned.kept, strict=True)
        if (silhouette := normalise(strip)) is not None
    ]
    if not normalised:
        return np.zeros((0, 64, 64), np.uint8), np.zeros(0, np.int64)
    silhouettes = np.stack([silhouette for silhouette, _ in normalised])
    places = np.array([place for _, place in normalised])
    return (silhouettes >= 128).astype(np.uint8) * np.uint8(255), places


def _draw(rng: np.random.Generator, range_: Range) -> float:
    return float(rng.uniform(range_.low, range_.high))


def _dress(
    usual: Outfit, unburdened: float, kind: str, rng: np.random.Generator
) -> tuple[Outfit, Carried | None]:
    worn = jittered_outfit(usual, rng)
    if kind == "bg":
        return worn, draw_carried(rng)
    if kind == "cl":
        return draw_coat(rng, worn), None
    if rng.random() < unburdened:
        return worn, None
    side: Side = "left" if rng.random() < 0.5 else "right"
    return worn, Carried("phone" if rng.random() < 0.4 else "pockets", side, size=1.0, depth=1.0)


def _on_path(
    vertices: NDArray[np.float32], ahead: Floats, sway: Floats, curve: float
) -> NDArray[np.float32]:
    """Move the walker along x, its middle at the origin, turning by `curve` radians on the way."""
    progress = (ahead - ahead.mean()) / max(float(np.ptp(ahead)), 1e-6)
    heading = curve * progress
    step = np.diff(ahead, prepend=ahead[0])
    path = np.cumsum(np.stack([np.cos(heading) * step, np.sin(heading) * step], axis=1), axis=0)
    path -= path[len(path) // 2]
    path += sway[:, None] * np.stack([-np.sin(heading), np.cos(heading)], axis=1)
    return turned(path, vertices, heading)


def _framed(points: NDArray[np.float32], faces: NDArray[np.int64], tall: float) -> Footage:
    """Rasterise with the person in the middle of every frame, the tallest `tall` pixels high."""
    low, high = points.min(axis=1), points.max(axis=1)
    size = (high - low).max(axis=0)
    scale = np.float32(tall / size[1])
    height = int(np.ceil(tall)) + 2 * MARGIN + 1
    width = int(np.ceil(size[0] * scale)) + 2 * MARGIN + 1
    middle = (low + high) / 2
    points = (points - middle[:, None, :]) * scale + np.array([width / 2, height / 2], np.float32)
    outlines = raster.fill(points, faces, height=height, width=width)
    return Footage(outlines, (middle * scale).astype(np.float64))

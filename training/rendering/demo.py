"""The walkers of `gaitid demo`: `python -m training.rendering.demo --mocap DIR --out FOLDER`.

A few people walk past one fixed camera, in files as a user would upload them: zips of frames as a
segmenter left them. Only CMU motion is used, because the files ship with the repository.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from training.rendering.body import BodyModel
from training.rendering.camera import Camera
from training.rendering.clothing import jittered_outfit
from training.rendering.command import load_walkers
from training.rendering.faults import MARGIN, Frames, draw_faults, spoil
from training.rendering.gait import jittered
from training.rendering.identity import Footage, Identity, Shot, draw_identity, film
from training.rendering.recipe import RenderRecipe

# Mild faults: a camera set up with care, as somebody would who tries the service out.
RECIPE: Final = RenderRecipe(
    seed=2026, split="test", collections=("cmu",), identities=8, severity=0.3
)
_ENROLLED: Final = 6
_WALKS: Final = 3
_FRAMES: Final = 40
_FPS: Final = 20.0
_TALL: Final = 120.0
_SCENE: Final = (200, 352)
_AZIMUTHS: Final = (90.0, 270.0, 90.0)  # to the left, to the right, to the left again


def demo_walks(mocap: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Each person's name and walks, zips of PNG frames; the last, `stranger`, is two people."""
    walkers = load_walkers(RECIPE, mocap)
    bodies = BodyModel()
    strangers = []
    for number in range(RECIPE.identities):
        identity, rng = draw_identity(RECIPE, number, walkers, bodies)
        count = _WALKS if number < _ENROLLED else 1
        walks = [_zip(_in_scene(identity, azimuth, rng)) for azimuth in _AZIMUTHS[:count]]
        if number < _ENROLLED:
            yield f"person-{number + 1}", walks
        else:
            strangers += walks
    yield "stranger", strangers


def _in_scene(identity: Identity, azimuth: float, rng: np.random.Generator) -> Frames:
    """Whole images uint8 `[s, h, w]` in which the person comes in, crosses and leaves."""
    shot = Shot(
        style=jittered(identity.style, rng, amount=RECIPE.walk_jitter),
        outfit=jittered_outfit(identity.outfit, rng),
        carried=None,
        camera=Camera(azimuth, distance=9.0, height=1.2),
        frames=_FRAMES,
        fps=_FPS,
        tall=_TALL,
        curve=0.0,
        faults=draw_faults(rng, frames=_FRAMES, severity=RECIPE.severity),
    )
    footage = film(identity, shot, rng)
    seen = spoil(footage.outlines, shot.faults, footage.middles[:, 0], rng)
    return _placed(seen, footage, shot.faults.dropped > 0)


def _placed(seen: Frames, footage: Footage, dropped: bool) -> Frames:
    """Put each frame where the person was in the whole image, leaving out whom the border cuts."""
    height, width = _SCENE
    _, rows, columns = seen.shape
    middles = footage.middles
    if dropped:  # which frames are gone is not known here: spread the others over the same way
        at = np.linspace(0, len(middles) - 1, len(seen)).round().astype(int)
        middles = middles[at]
    left = np.round(width / 2 + middles[:, 0] - middles[:, 0].mean() - columns / 2).astype(int)
    top = np.round(height / 2 + middles[:, 1] - middles[:, 1].mean() - rows / 2).astype(int)
    scenes = []
    for frame, x, y in zip(seen, left, top, strict=True):
        inside = x + MARGIN > 0 and x + columns - MARGIN < width
        if inside:
            scene = np.zeros((height + 2 * rows, width + 2 * columns), np.uint8)
            scene[y + rows : y + 2 * rows, x + columns : x + 2 * columns] = frame
            scenes.append(scene[rows : rows + height, columns : columns + width])
    return np.stack(scenes)


def _zip(frames: Frames) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, frame in enumerate(frames):
            ok, png = cv2.imencode(
                ".png", frame, [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9]
            )
            if not ok:
                raise OSError("a frame could not be encoded")
            # A fixed date: the same walks are the same bytes.
            archive.writestr(zipfile.ZipInfo(f"{number:03d}.png"), png.tobytes())
    return buffer.getvalue()


def main() -> None:
    """Write the demo's walkers, one folder a person."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mocap", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for person, walks in demo_walks(arguments.mocap):
        folder = arguments.out / person
        folder.mkdir(parents=True, exist_ok=True)
        for number, walk in enumerate(walks):
            (folder / f"walk-{number + 1}.zip").write_bytes(walk)


if __name__ == "__main__":
    main()

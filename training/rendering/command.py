"""`python -m training render`: a recipe and recordings in, a packed dataset out.

Identities are rendered by worker processes and written in their order, so the pack is the same for
any number of workers; a killed run goes on where it stopped.
"""

from __future__ import annotations

import json as json_format
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.pack import Pack, PackWriter, Partition
from training.process.processor import one_thread_each, usable_cores
from training.rendering.body import BodyModel
from training.rendering.cycles import GaitCycle, find_cycles
from training.rendering.identity import draw_identity, render_walks
from training.rendering.recipe import RenderRecipe
from training.rendering.recordings import load_recordings


@dataclass(frozen=True)
class Sequence:
    """What a worker hands over, ready for the pack."""

    condition: str
    view: str
    silhouettes: NDArray[np.uint8]
    metadata: dict[str, Any]
    pose_maps: NDArray[np.uint8] | None


def load_walkers(recipe: RenderRecipe, mocap: Path) -> dict[str, list[GaitCycle]]:
    """The gait cycles of the recorded walkers that a recipe may use.

    Raises:
        FileNotFoundError: there are no recordings in the folder.
        ValueError: none of them is a straight walk of this recipe's split.
    """
    walkers: dict[str, list[GaitCycle]] = {}
    for recording in load_recordings(mocap):
        if recipe.uses(recording.walker) and (cycles := find_cycles(recording)):
            walkers.setdefault(recording.walker, []).extend(cycles)
    if not walkers:
        raise ValueError(f"no walker of the {recipe.split} split walks straight in {mocap}")
    return walkers


def render(
    recipe: Path,
    out: Path,
    *,
    workers: int | None = None,
    limit: int | None = None,
    json: bool = False,
    mocap: Path | None = None,
    pose_maps: bool = False,
) -> Pack:
    """Render a recipe into a pack, or finish one that was interrupted.

    Args:
        recipe: path of a TOML recipe, or the name of one in `training/recipes`.
        out: the pack to be written.
        workers: processes; as many as there are cores if None, 1 renders in this one.
        limit: render only this many identities.
        json: write progress as JSON lines to stdout instead of text to stderr.
        mocap: folder of the recordings; the recipe's own if None.
        pose_maps: draw limbs and joints as well, whatever the recipe says.

    Raises:
        FileNotFoundError: no recipe, or no recordings.
        ValueError: a recipe that is none, a limit below 1 or below what was begun, or no recordings
            named.
    """
    plan = RenderRecipe.load(_found(recipe))
    if pose_maps:
        plan = plan.model_copy(update={"pose_maps": True})
    folder = mocap or plan.mocap
    if folder is None:
        raise ValueError("name the folder of the recordings: --mocap DIR, or mocap in the recipe")
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1")
    identities = plan.identities if limit is None else min(limit, plan.identities)
    walkers = load_walkers(plan, folder)
    with PackWriter(out, "binary", resume=True) as writer:
        if any(record.metadata.get("recipe") != plan.digest for record in writer.sequences):
            raise ValueError(f"{out} was begun with another recipe; remove .{out.name}.partial")
        already = Counter(record.subject for record in writer.sequences)
        if len(already) > identities:
            raise ValueError(
                f"{out} was begun with {len(already)} identities, more than {identities}; "
                f"raise the limit or remove .{out.name}.partial"
            )
        names = [f"{plan.split}-{number:05d}" for number in range(identities)]
        # The last identity that was begun may be incomplete: it is drawn again and its first walks
        # are skipped.
        first = max(0, len(already) - 1)
        report = _Progress(json, total=identities, start=first)
        rendered = _render_all(plan, walkers, range(first, identities), workers or usable_cores())
        for name, sequences in zip(names[first:], rendered, strict=True):
            for sequence in sequences[already.get(name, 0) :]:
                metadata = {"recipe": plan.digest, **sequence.metadata}
                writer.add(
                    name,
                    sequence.condition,
                    sequence.view,
                    sequence.silhouettes,
                    metadata,
                    sequence.pose_maps,
                )
            report.advance(sum(len(sequence.silhouettes) for sequence in sequences))
        subjects = tuple(names)
        train = plan.split == "train"
        pack = writer.finish(
            Partition.model_validate(
                {"TRAIN_SET": subjects if train else (), "TEST_SET": () if train else subjects}
            )
        )
    report.done(pack)
    return pack


def _found(recipe: Path) -> Path:
    shipped = Path(__file__).parents[1] / "recipes" / recipe.with_suffix(".toml").name
    if not recipe.exists() and recipe.parent == Path() and shipped.exists():
        return shipped
    return recipe


def _render_all(
    recipe: RenderRecipe, walkers: dict[str, list[GaitCycle]], numbers: range, workers: int
) -> Iterator[list[Sequence]]:
    if workers == 1:
        renderer = _Renderer(recipe, walkers)
        yield from map(renderer, numbers)
        return
    context = multiprocessing.get_context("spawn")
    with (
        one_thread_each(os.environ),
        context.Pool(workers, initializer=_start, initargs=(recipe, walkers)) as pool,
    ):
        yield from pool.imap(_identity, numbers, chunksize=1)


class _Renderer:
    """Renders identities of one recipe; loads the body model once."""

    def __init__(self, recipe: RenderRecipe, walkers: dict[str, list[GaitCycle]]) -> None:
        self._recipe = recipe
        self._walkers = walkers
        self._bodies = BodyModel()

    def __call__(self, number: int) -> list[Sequence]:
        identity, rng = draw_identity(self._recipe, number, self._walkers, self._bodies)
        return [
            Sequence(walk.condition, walk.view, walk.silhouettes, walk.metadata, walk.pose_maps)
            for walk in render_walks(identity, self._recipe, rng)
        ]


_worker: _Renderer | None = None


def _start(recipe: RenderRecipe, walkers: dict[str, list[GaitCycle]]) -> None:
    """Make a worker process use one core in OpenCV too, and load what it needs."""
    import cv2

    global _worker
    cv2.setNumThreads(1)
    _worker = _Renderer(recipe, walkers)


def _identity(number: int) -> list[Sequence]:
    if _worker is None:
        raise RuntimeError("a worker process was not started with _start")
    return _worker(number)


class _Progress:
    """Tells people or machines how far the rendering is."""

    def __init__(self, json: bool, *, total: int, start: int) -> None:
        self._json = json
        self._total = total
        self._done = start
        self._start = start
        self._frames = 0
        self._begun = time.monotonic()
        self._told = self._begun
        self._event({"event": "start", "total_steps": total, "step": start})

    def advance(self, frames: int) -> None:
        self._done += 1
        self._frames += frames
        now = time.monotonic()
        if now - self._told < 1.0 and self._done < self._total:
            return
        self._told = now
        rate = self._frames / max(now - self._begun, 1e-9)
        eta = (self._total - self._done) * (now - self._begun) / (self._done - self._start)
        self._event(
            {
                "event": "progress",
                "step": self._done,
                "total_steps": self._total,
                "eta_s": round(eta, 1),
                "metrics": {"frames_per_second": round(rate, 1)},
            }
        )

    def done(self, pack: Pack) -> None:
        self._event(
            {
                "event": "done",
                "dataset": str(pack.path),
                "metrics": {
                    "sequences": len(pack),
                    "frames": int(pack.lengths.sum()),
                    "content_hash": pack.content_hash,
                },
            }
        )

    def _event(self, event: dict[str, Any]) -> None:
        if self._json:
            sys.stdout.write(json_format.dumps(event) + "\n")
            sys.stdout.flush()
        elif event["event"] == "progress":
            line = (
                f"{event['step']}/{event['total_steps']} identities, "
                f"{event['metrics']['frames_per_second']:.0f} frames a second, "
                f"{event['eta_s']:.0f} s left"
            )
            # The line is written over in a terminal only: a log gets one after another.
            sys.stderr.write(f"\r{line} " if sys.stderr.isatty() else f"{line}\n")
            sys.stderr.flush()
        elif event["event"] == "done":
            metrics = event["metrics"]
            begin = "\n" if sys.stderr.isatty() else ""
            sys.stderr.write(
                f"{begin}{event['dataset']}: {metrics['sequences']} sequences, "
                f"{metrics['frames']} frames, hash {metrics['content_hash'][:12]}\n"
            )

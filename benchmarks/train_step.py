"""Time of a training step and where it goes; and the whole loop beside a plain one.

Takes the shipped recipes `student-baseline` and `gaitkd-corrected` over walks drawn here; the
teacher is an untrained DeepGaitV2-P3D of half width: its speed does not depend on its weights. The
first of them also runs as the field's code trains (`benchmarks.plain_loop`): the same batches,
augmentation, network, losses and optimiser, in turns with ours.

    python -m benchmarks.train_step [--out FILE.json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine, plain_loop
from benchmarks.train_input import write_walks
from models import checkpoint
from models.checkpoint import card_of
from models.networks.registry import build
from training.data import pack_dataset
from training.data.augmentation import augment, generator
from training.data.batches import BatchSource
from training.objective.teachers import run_teachers
from training.recipe import Recipe, load
from training.run.distributed import join as join_group
from training.run.preparation import Preparation, prepare
from training.run.trainer import Trainer

STEPS = 5
TURNS = 3
WORKERS = 2
TEACHER = {
    "mode": "p3d",
    "channels": [32, 64, 128, 256],
    "layers": [1, 1, 1, 1],
    "embedding_channels": 256,
    "parts": 16,
    "identities": 32,
}


def measure_recipe(recipe: Recipe) -> dict[str, object]:
    """Where a step's time goes, medians. The input is made on the spot: no thread hides it here."""
    trainer, source, preparation = _ours(recipe)
    seconds: dict[str, list[float]] = {"input": [], "teachers": [], "step": []}
    for step in range(STEPS + 1):
        began = time.perf_counter()
        batch = source.batch(step)
        clips = augment(batch.silhouettes, recipe.data.augmentation, generator(0, step))
        seconds["input"].append(_since(began))
        if preparation.teachers:
            began = time.perf_counter()
            run_teachers(preparation.teachers, clips, batch.lengths, trainer.precision)
            seconds["teachers"].append(_since(began))
        began = time.perf_counter()
        source.batch(step)
        trainer.train(batch)
        seconds["step"].append(_since(began))
    medians = {name: float(np.median(times[1:])) for name, times in seconds.items() if times}
    shares = {name: medians[name] / medians["step"] for name in medians if name != "step"}
    return {
        "clips_a_second": round(_clips(recipe) / medians["step"], 1),
        "step_ms": round(1000 * medians["step"]),
        "computing_share": round(1 - shares["input"], 3),
        **{f"{name}_share": round(share, 3) for name, share in shares.items()},
    }


def compare(recipe: Recipe, walks: Path) -> dict[str, dict[str, object]]:
    """Ours and the plain loop from loading to update, in turns; medians over the turns.

    The plain loop runs in float32 and, to tell what precision alone brings, in bf16.
    """
    device = join_group().device
    loops = {"whole loop, ours": _own_loop(recipe)}
    for name, half in (("whole loop, plain fp32", False), ("whole loop, plain bf16", True)):
        student = prepare(recipe, device).student
        loops[name] = plain_loop.train(recipe, walks, student, device, workers=WORKERS, half=half)
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for _ in range(TURNS):
        for name, loop in loops.items():
            next(loop)  # with cold caches
            began = time.perf_counter()
            computing = sum(next(loop) for _ in range(STEPS))
            turns[name].append(((time.perf_counter() - began) / STEPS, computing / STEPS))
    medians = {name: np.median(times, axis=0).tolist() for name, times in turns.items()}
    ours, _ = medians["whole loop, ours"]
    return {
        name: {
            "clips_a_second": round(_clips(recipe) / step, 1),
            "step_ms": round(1000 * step),
            "computing_share": round(computing / step, 3),
            "ours_is_faster_by": round(step / ours, 2),
        }
        for name, (step, computing) in medians.items()
    }


def _ours(recipe: Recipe) -> tuple[Trainer, BatchSource, Preparation]:
    group = join_group()
    preparation = prepare(recipe, group.device)
    source = BatchSource(
        preparation.train,
        subjects=recipe.batch.subjects,
        sequences=recipe.batch.sequences,
        clip=recipe.data.clip,
        seed=0,
        device=group.device,
    )
    return Trainer(recipe, preparation, group), source, preparation


def _own_loop(recipe: Recipe) -> Iterator[float]:
    """The loop of `training.run.loop`; each item is the seconds of a step in the network."""
    trainer, source, _ = _ours(recipe)
    augmenting = []
    for step in range(STEPS):
        batch = source.batch(step)
        began = time.perf_counter()
        augment(batch.silhouettes, recipe.data.augmentation, generator(0, step))
        augmenting.append(_since(began))
    for batch in source.iterate():
        began = time.perf_counter()
        trainer.train(batch)
        yield _since(began) - float(np.median(augmenting))


def _clips(recipe: Recipe) -> int:
    return recipe.batch.subjects * recipe.batch.sequences


def _since(began: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure() -> dict[str, object]:
    """Both recipes and the comparison, on the same walks."""
    with tempfile.TemporaryDirectory() as folder:
        walks, pack, teacher = (Path(folder) / name for name in ("walks", "w.pack", "teacher"))
        write_walks(walks)
        pack_dataset(walks, pack)
        torch.manual_seed(0)
        network = build("deepgaitv2", TEACHER)
        checkpoint.save(teacher, network, card_of(network, name="teacher", metric="euclidean"))
        alone = load("student-baseline", dataset=pack)
        taught = load(
            "gaitkd-corrected",
            settings=["distillation.assume_same_identities=true"],
            dataset=pack,
            teachers=[teacher],
        )
        rows = {
            "student-baseline": measure_recipe(alone),
            "gaitkd-corrected": measure_recipe(taught),
            **compare(alone, walks),
        }
    return {"benchmark": "training step", "machine": machine.describe(), "rows": rows}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(measure(), options.out)


if __name__ == "__main__":
    main()

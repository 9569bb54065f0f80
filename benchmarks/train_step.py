"""Time of a training step, and where it goes: input, student, teacher, and the rest.

Takes the shipped recipes `student-baseline` and `gaitkd-corrected` over walks drawn here; the
teacher is an untrained DeepGaitV2-P3D of half width: its speed does not depend on its weights.

    python -m benchmarks.train_step [--out FILE.json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine
from benchmarks.train_input import write_walks
from models import checkpoint
from models.checkpoint import Card
from models.registry import build
from training.data import pack_dataset
from training.data.augmentation import augment, generator
from training.data.batches import BatchSource
from training.distributed import join as join_group
from training.preparation import prepare
from training.recipe import Recipe, load
from training.teachers import ask
from training.trainer import Trainer

STEPS = 5
TEACHER = {
    "mode": "p3d",
    "channels": [32, 64, 128, 256],
    "layers": [1, 1, 1, 1],
    "embedding_channels": 256,
    "parts": 16,
    "identities": 32,
}


def measure_recipe(recipe: Recipe) -> dict[str, object]:
    """Seconds of a whole step, and of the input and the teachers in it, each the median."""
    group = join_group()
    preparation = prepare(recipe, group.device)
    trainer = Trainer(recipe, preparation, group)
    source = BatchSource(
        preparation.train,
        subjects=recipe.batch.subjects,
        sequences=recipe.batch.sequences,
        clip=recipe.data.clip,
        seed=0,
        device=group.device,
    )
    seconds: dict[str, list[float]] = {"input": [], "teachers": [], "step": []}
    for step in range(STEPS + 1):
        began = time.perf_counter()
        batch = source.batch(step)
        clips = augment(batch.silhouettes, recipe.data.augmentation, generator(0, step))
        seconds["input"].append(_since(began))
        if preparation.teachers:
            began = time.perf_counter()
            ask(preparation.teachers, clips, batch.lengths, trainer.precision)
            seconds["teachers"].append(_since(began))
        began = time.perf_counter()
        source.batch(step)
        trainer.train(batch)
        seconds["step"].append(_since(began))
    medians = {name: float(np.median(times[1:])) for name, times in seconds.items() if times}
    clips_a_step = recipe.batch.subjects * recipe.batch.sequences
    return {
        "step_ms": round(1000 * medians["step"]),
        "clips_a_second": round(clips_a_step / medians["step"], 1),
        **{
            f"{name}_share": round(medians[name] / medians["step"], 3)
            for name in ("input", "teachers")
            if name in medians
        },
    }


def _since(began: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure() -> dict[str, object]:
    """Both recipes, on the same walks."""
    with tempfile.TemporaryDirectory() as folder:
        walks, pack, teacher = (Path(folder) / name for name in ("walks", "w.pack", "teacher"))
        write_walks(walks)
        pack_dataset(walks, pack)
        torch.manual_seed(0)
        network = build("deepgaitv2", TEACHER)
        checkpoint.save(teacher, network, Card.of(network, name="teacher", metric="euclidean"))
        rows = {
            "student-baseline": measure_recipe(load("student-baseline", dataset=pack)),
            "gaitkd-corrected": measure_recipe(
                load(
                    "gaitkd-corrected",
                    settings=["distillation.assume_same_identities=true"],
                    dataset=pack,
                    teachers=[teacher],
                )
            ),
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

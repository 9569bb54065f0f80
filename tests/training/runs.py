"""Runs small enough for tests, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file

from training.process.events import Event, Progressed, SilentReporter
from training.process.stopping import StopRequest
from training.recipe import Recipe, load
from training.run.loop import run_recipe

TINY = (
    'student={architecture="gaitbase", config={channels=[4, 4, 8, 8], parts=4, '
    "embedding_channels=8}}",
    "steps=6",
    "schedule={kind='cosine', warm_up=1}",
    "batch={subjects=3, sequences=2}",
    "data.clip={kind='ordered', frames=4}",
    "log_every=2",
    "save_every=3",
    "evaluation.every=0",
)


class Listener(SilentReporter):
    """Remembers events; like a power cut, it can end the run when a step is reported."""

    def __init__(self, *, cut_at: int | None = None) -> None:
        self.events: list[Event] = []
        self._cut_at = cut_at

    def report(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Progressed) and event.step == self._cut_at:
            raise PowerCut

    def __enter__(self) -> Self:
        return self


class PowerCut(BaseException):
    pass


def tiny(name: str, dataset: Path, *settings: str, teachers: tuple[Path, ...] = ()) -> Recipe:
    return load(name, settings=(*TINY, *settings), dataset=dataset, teachers=teachers)


def run(recipe: Recipe, out: Path, listener: Listener | None = None) -> Listener:
    listener = listener or Listener()
    run_recipe(recipe, "tiny", out, listener, StopRequest(), out / "prototypes")
    return listener


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / "weights.safetensors")

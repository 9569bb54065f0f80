"""The state of an unfinished run, in one file that is always whole."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from training.recipe import Recipe

NAME = "state.pt"


class Run(BaseModel):
    """What a run is: none goes on from the state of another.

    An update in the middle of a run does not make it another: what a recipe of before did not know
    yet has its default.

    Attributes:
        recipe: of the run.
        dataset: hash of the walks to learn.
        identities: hash of the ids learnt, in the order of the logits.
        origin: digest of the checkpoint the student starts from, if any.
        teachers: their digests.
        stages: hashes of the walks of the stages before.
    """

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    dataset: str
    identities: str
    origin: str | None
    teachers: tuple[str, ...]
    stages: tuple[str, ...] = ()


class StateError(ValueError):
    """A state file that cannot be continued from."""


def save(directory: Path, state: dict[str, Any], *, run: Run) -> None:
    """Replace the state at one stroke: a kill leaves the old one or the new one.

    Args:
        directory: the run's output folder.
        state: tensors, numbers, strings and containers of them.
        run: whose.
    """
    beside = directory / f"{NAME}.new"
    with beside.open("wb") as file:
        torch.save({**state, "run": run.model_dump_json()}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(directory / NAME)


def load(directory: Path, *, run: Run) -> dict[str, Any] | None:
    """The last state, on the CPU, or None when the run has not saved any.

    Args:
        directory: the run's output folder.
        run: the one that goes on.

    Raises:
        StateError: the file is damaged, or the folder holds a run of another recipe.
    """
    path = directory / NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise StateError(f"{path} is damaged; remove it to start again: {error}") from error
    saved = _run(state)
    if saved is None or _identity(saved) != _identity(run):
        raise StateError(
            f"{directory} holds a run of another recipe, dataset or teacher; choose another "
            f"folder, or remove {path} to start again"
        )
    return state


def _identity(run: Run) -> Run:
    """A run without where its files lie, which hashes name: it may go on on another machine."""
    recipe = run.recipe
    nowhere = {"dataset": None}
    plain = recipe.model_copy(
        update={
            "needs": {},
            "teachers": (),
            "data": recipe.data.model_copy(update=nowhere),
            "student": recipe.student.model_copy(update={"checkpoint": None}),
            "stages": tuple(stage.model_copy(update=nowhere) for stage in recipe.stages),
        }
    )
    return run.model_copy(update={"recipe": plain})


def _run(state: dict[str, Any]) -> Run | None:
    """Whose state it is; None: that of a version too different to tell."""
    try:
        return Run.model_validate_json(state.get("run", ""))
    except ValidationError:
        return None

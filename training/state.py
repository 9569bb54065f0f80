"""The state of an unfinished run, in one file that is always whole."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

NAME = "state.pt"


class StateError(ValueError):
    """A state file that cannot be continued from."""


def save(directory: Path, state: dict[str, Any], *, run: str) -> None:
    """Replace the state at one stroke: a kill leaves the old one or the new one.

    Args:
        directory: the run's output folder.
        state: tensors, numbers, strings and containers of them.
        run: names the run, so that no other goes on from its state.
    """
    beside = directory / f"{NAME}.new"
    with beside.open("wb") as file:
        torch.save({**state, "run": run}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(directory / NAME)


def load(directory: Path, *, run: str) -> dict[str, Any] | None:
    """The last state, on the CPU, or None when the run has not saved any.

    Args:
        directory: the run's output folder.
        run: name of the run that goes on.

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
    if state.get("run") != run:
        raise StateError(
            f"{directory} holds a run of another recipe, dataset or teacher; choose another "
            f"folder, or remove {path} to start again"
        )
    return state

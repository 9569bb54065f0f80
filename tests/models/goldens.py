"""The network goldens, which live beside the repository and never in it; see their README."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

FOLDER = Path(__file__).parents[2] / "../shared/goldens"
TOLERANCE = 5e-6  # relative L2

NETWORKS = {
    "gaitbase_casiab": "gaitbase",
    "deepgaitv2_casiab_p3d": "deepgaitv2",
    "deepgaitv2_gait3d_2d": "deepgaitv2",
    "gaitset_casiab": "gaitset",
}
CASES = {  # sequences and frames of `sil`
    "batch": (slice(0, 3), 12),
    "t30": (slice(0, 1), 30),
    "t1": (slice(1, 2), 1),
    "t2": (slice(1, 2), 2),
    "t7": (slice(2, 3), 7),
}
RAGGED = (12, 7, 5)

Rule = Literal["fan", "flat"]


def skip_without_goldens() -> None:
    if not FOLDER.is_dir():
        pytest.skip("the network goldens (../shared/goldens) are not beside this checkout")


@cache
def silhouettes() -> NDArray[np.uint8]:
    skip_without_goldens()
    with np.load(FOLDER / "inputs.npz") as file:
        return np.array(file["sil"])


@cache
def description(name: str) -> dict[str, Any]:
    skip_without_goldens()
    found: dict[str, Any] = json.loads((FOLDER / f"model_{name}.json").read_text())
    return found


@cache
def expected(name: str, path: str) -> NDArray[np.float32]:
    with np.load(FOLDER / f"model_{name}.npz") as file:
        return np.array(file[path])


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(v["shape"]) for key, v in description(name)["state_dict"].items()}


def weights(shapes: Mapping[str, tuple[int, ...]], rule: Rule = "fan") -> dict[str, torch.Tensor]:
    """The weights that the goldens' README derives from keys and shapes."""
    filled = {}
    for position, key in enumerate(sorted(shapes)):
        shape, rng = shapes[key], np.random.default_rng([20240101, position])
        if key.endswith("num_batches_tracked"):
            filled[key] = torch.tensor(100)
            continue
        if key.endswith("relative_position_index"):
            continue  # whole numbers, which follow from the window
        if key.endswith("running_var") or (key.endswith(".weight") and len(shape) == 1):
            values = rng.uniform(0.5, 1.5, shape)
        elif key == "HPP.p":
            values = 6.5 + 0.1 * rng.standard_normal(shape)
        elif key.endswith(("running_mean", ".bias")):
            beside = shapes.get(f"{key.removesuffix('.bias')}.weight", ())
            values = rng.standard_normal(shape) * (0.05 if len(beside) > 1 else 0.1)
        elif key.endswith("relative_position_bias_table"):
            values = rng.standard_normal(shape) * (0.05 if rule == "flat" else 0.5)
        elif rule == "flat":
            values = rng.standard_normal(shape) * 0.05
        else:
            fan_in = shape[1] if key.endswith("fc_bin") else int(np.prod(shape[1:]))
            values = rng.standard_normal(shape) * np.sqrt(1 / fan_in)
        filled[key] = torch.from_numpy(np.asarray(values, np.float32))
    return filled


def relative_error(actual: NDArray[Any] | torch.Tensor, wanted: NDArray[Any]) -> float:
    difference = np.asarray(actual, np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted.astype(np.float64)))

"""What GET /models says of each model, and what only GET /models/{name} does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.networks import registry
from service.http.routes.models import headline
from tests.service.conftest import TINY, save_tiny_model
from tests.service.server import serving, settings_for


def test_a_list_of_models_is_short_and_the_card_is_shown_with_one(
    shared: httpx.Client, models: Path
) -> None:
    listed = {model["name"]: model for model in shared.get("/models").json()["items"]}
    assert set(listed) == {"default", "other", "uncalibrated"}
    network = registry.build("gaitbase", TINY)
    assert listed["default"] == {
        "name": "default",
        "source": "shipped",
        "digest": json.loads((models / "default" / "card.json").read_text())["digest"],
        "architecture": "gaitbase",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weights_bytes": (models / "default" / "weights.safetensors").stat().st_size,
        "headline": {},
        "active_in": ["default"],
        "previous_in": [],
        "job_id": None,
        "created_at": None,
    }
    shown = shared.get("/models/default").json()
    assert shown["card"]["name"] == "tiny"
    assert shown == {**listed["default"], "metrics": {}, "card": shown["card"]}


def test_a_model_whose_weights_are_damaged_is_listed_without_their_size(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for name in ("default", "damaged", "bare"):
        save_tiny_model(folder / name)
    (folder / "damaged" / "weights.safetensors").write_bytes(b"no weights")
    (folder / "bare" / "weights.safetensors").unlink()
    with serving(settings_for(tmp_path / "data", folder)) as client:
        sizes = {
            model["name"]: (model["parameters"] is None, model["weights_bytes"] is None)
            for model in client.get("/models").json()["items"]
        }
    unknown = (True, True)
    assert sizes == {"default": (False, False), "damaged": unknown, "bare": unknown}


def evaluation(**rows: Any) -> dict[str, Any]:
    return {"subjects": 5, "rows": rows}


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, {}),
        ({"rank1": 0.9, "map": 0.8, "loss": 1}, {"rank1": 0.9}),
        ({"a": evaluation(other={"rank-1": [0.1, 0, 1]})}, {"a": 0.1}),
        (
            {"a": evaluation(other={"x": [0.1, 0, 1]}, mine={"x": [0.2, 0, 1], "y": [0.3, 0, 1]})},
            {"a": 0.2},
        ),
        ({"a": evaluation(), "b": evaluation(mine={}), "c": evaluation(mine={"x": "high"})}, {}),
        ({"a": {"rows": [1]}, "b": {"rows": {"mine": 3}}, "rank1": "high"}, {}),
        (
            {f"e{n}": evaluation(mine={"x": [n]}) for n in range(20)},
            {f"e{n}": n for n in range(10)},
        ),
    ],
)
def test_the_headline_is_the_first_figure_of_each_evaluation_s_own_row(
    metrics: dict[str, Any], expected: dict[str, float]
) -> None:
    assert headline("mine", metrics) == expected

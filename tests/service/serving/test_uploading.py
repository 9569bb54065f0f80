"""Models from strangers: what is kept, what is refused, and what cannot be removed."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from sqlalchemy import Engine

from models.card import CARD, MAX_CARD_BYTES, WEIGHTS
from models.checkpoint import card_of
from service.foundation.errors import Invalid
from service.foundation.settings import Settings
from service.http.resources import open_encoder, open_engine
from service.serving.registry import ModelRegistry
from service.serving.uploading import add_checkpoint
from tests.service.conftest import save_tiny_model
from tests.service.requests import identify, problem
from tests.service.server import Serve
from tests.service.walkers import walk


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "mine", seed=5)
    return tmp_path / "mine"


def upload(client: httpx.Client, weights: bytes, card: bytes, name: str = "mine") -> httpx.Response:
    files = {"weights": ("w", weights), "card": ("c", card)}
    return client.post("/models", data={"name": name}, files=files)


def nothing_is_left(settings: Settings) -> bool:
    return not settings.models_dir.exists() or not list(settings.models_dir.iterdir())


def test_an_uploaded_checkpoint_is_a_model_until_it_is_removed(
    serve: Serve, settings: Settings, checkpoint: Path
) -> None:
    client = serve()
    weights, card = (checkpoint / WEIGHTS).read_bytes(), (checkpoint / CARD).read_bytes()
    answer = upload(client, weights, card)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert answer.headers["location"] == "/models/mine"
    assert (body["name"], body["source"], body["active_in"]) == ("mine", "imported", [])
    assert client.get("/models/mine").json() == body
    assert problem(upload(client, weights, card), 409)["type"] == "/problems/model-exists"
    assert problem(upload(client, weights, card, "default"), 409)
    assert client.post("/models/mine/activate").status_code == 202
    in_use = problem(client.delete("/models/mine"), 409)
    assert in_use["type"] == "/problems/model-in-use"
    assert "job" in in_use["detail"]
    job = client.get("/jobs").json()["items"][0]["id"]
    client.post(f"/jobs/{job}/cancel")
    assert client.delete("/models/mine").status_code == 204
    assert problem(client.get("/models/mine"), 404)
    assert problem(client.delete("/models/mine"), 404)
    assert problem(client.delete("/models/default"), 409)["type"] == "/problems/model-in-use"
    assert nothing_is_left(settings)
    assert upload(client, weights, card).status_code == 201  # its name is free again
    recorded = [json.loads(line) for line in client.get("/audit").text.splitlines()]
    about = {"name": "mine", "digest": body["digest"]}
    assert [
        (line["action"], line["details"]) for line in recorded if "model" in line["action"]
    ] == [
        ("add_model", about),
        ("remove_model", {"name": "mine"}),
        ("add_model", about),
    ]


def sealed(weights: bytes, card: bytes, **fields: Any) -> bytes:
    """The card with the digest that these weights and it have: what a careful attacker sends."""
    content = {**json.loads(card), **fields}
    content.pop("digest")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    both = hashlib.sha256(weights).digest() + canonical.encode()
    return json.dumps({**content, "digest": hashlib.sha256(both).hexdigest()}).encode()


def changed(card: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(card), **fields}).encode()


def test_what_is_no_checkpoint_is_refused_with_the_reason_and_leaves_nothing(
    serve: Serve, settings: Settings, checkpoint: Path
) -> None:
    client = serve(max_request_bytes=4 * 2**20)
    weights, card = (checkpoint / WEIGHTS).read_bytes(), (checkpoint / CARD).read_bytes()
    tensors = load_file(checkpoint / WEIGHTS)
    key = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    forged = [
        b"",
        b"not safetensors",
        pickle.dumps({"model": {}}),
        weights[:-9],
        weights + b"more",
        (2**62).to_bytes(8, "little") + b"{}",
        serialise({**tensors, key: torch.full_like(tensors[key], np.nan)}),
        serialise({**tensors, key: tensors[key].new_zeros(3)}),
        serialise({**tensors, "stranger": torch.zeros(1)}),
        serialise({name: tensor for name, tensor in tensors.items() if name != key}),
        serialise({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}),
        serialise(
            {  # every walk is the bias of the neck, or nothing
                name: torch.zeros_like(tensor) if name == "head.projection.weight" else tensor
                for name, tensor in tensors.items()
            }
        ),
    ]
    huge = {**json.loads(card)["config"], "channels": [4096] * 4, "embedding_channels": 4096}
    point = {"target_fpir": 0.01, "gallery_subjects": 10, "threshold": 0.5}
    endless = {**json.loads(card)["config"], "layers": [10**9] * 4}
    for bad_weights, bad_card, field in (
        *((bad, card, "weights") for bad in forged),
        *((bad, sealed(bad, card), "weights") for bad in forged),
        (weights, sealed(weights, card, config=huge, channels=4096), "weights"),
        (weights, sealed(weights, card, config=endless), "card"),
        (weights, sealed(weights, card, architecture="os.system"), "card"),
        (weights, sealed(weights, card, parts=5), "card"),
        (weights, b"", "card"),
        (weights, b"[" * 50_000, "card"),
        (weights, b'{"digest": 1}', "card"),
        (weights, sealed(weights, card, notes="\ud800"), "card"),
        (weights, changed(card, threshold="NaN"), "card"),
        (weights, changed(card, surprise=1), "card"),
        (weights, sealed(weights, card, threshold=7), "card"),
        (weights, sealed(weights, card, threshold=-1.01), "card"),
        (weights, sealed(weights, card, thresholds=[point] * 101), "card"),
        (weights, sealed(weights, card, thresholds=[{**point, "threshold": 2}]), "card"),
        (weights, sealed(weights, card, notes="n" * 10_001), "card"),
        (weights, changed(card, threshold=0.1), "weights"),  # another card's digest
    ):
        refused = problem(upload(client, bad_weights, bad_card), 422)
        assert refused["type"] == "/problems/checkpoint-invalid", (field, refused)
        assert refused["errors"][0]["where"] == field, refused
        assert str(settings.models_dir) not in refused["detail"]
    assert problem(upload(client, weights, b" " * (MAX_CARD_BYTES + 1)), 413)
    assert problem(upload(client, b"0" * 5 * 2**20, card), 413)
    for name in ("../up", "a/b", ".hidden", "", "x" * 65):
        problem(upload(client, weights, card, name), 422)
    assert problem(client.post("/models", data={"name": "x"}), 422)
    assert nothing_is_left(settings)
    assert identify(client, walk(1)).status_code == 200


def test_a_card_of_another_digest_or_size_of_frame_is_refused(
    serve: Serve, settings: Settings, tmp_path: Path
) -> None:
    """Cards that belong to their weights, and still cannot serve."""
    from models import checkpoint as checkpoints
    from models.card import InputSize
    from models.networks import registry
    from tests.service.conftest import TINY

    network = registry.build("gaitbase", TINY)
    card = card_of(
        network, name="tall", metric="cosine", input=InputSize(height=128, width=88), threshold=0.5
    )
    checkpoints.save(tmp_path / "tall", network, card)
    folder = tmp_path / "tall"
    answer = upload(serve(), (folder / WEIGHTS).read_bytes(), (folder / CARD).read_bytes())
    refused = problem(answer, 422)
    assert "128 x 88" in refused["detail"]
    assert refused["errors"] == [{"where": "card", "reason": "not_a_checkpoint"}]
    assert nothing_is_left(settings)


def test_a_network_that_would_keep_everybody_waiting_is_refused(
    settings: Settings, engine: Engine, checkpoint: Path
) -> None:
    registry = ModelRegistry(settings, engine)
    weights, card = (io.BytesIO((checkpoint / name).read_bytes()) for name in (WEIGHTS, CARD))
    with pytest.raises(Invalid, match="multiplications"):
        add_checkpoint(settings, registry, "mine", weights, card, lambda _: None, most_macs=1000.0)
    assert nothing_is_left(settings)


def test_a_model_that_reads_pose_maps_is_neither_taken_nor_activated(
    serve: Serve, settings: Settings, tmp_path: Path
) -> None:
    """Imported into the folder of models it is one, and may teach."""
    save_tiny_model(tmp_path / "posed", architecture="skeletongaitpp")
    client = serve()
    weights, card = ((tmp_path / "posed" / name).read_bytes() for name in (WEIGHTS, CARD))
    refused = problem(upload(client, weights, card, "posed"), 422)
    assert refused["type"] == "/problems/checkpoint-invalid"
    assert "reads pose maps beside silhouettes, which no upload has" in refused["detail"]
    save_tiny_model(settings.models_dir / "posed", architecture="skeletongaitpp")
    assert client.get("/models/posed").json()["architecture"] == "skeletongaitpp"
    refused = problem(client.post("/models/posed/activate"), 422)
    assert refused["type"] == "/problems/model-reads-pose"
    assert "can be a teacher" in refused["detail"]
    assert client.get("/jobs").json()["items"] == []
    assert identify(client, walk(1)).json()["model"]["name"] == "default"


def test_a_deployment_does_not_start_with_a_model_that_reads_pose_maps(
    settings: Settings, engine: Engine
) -> None:
    save_tiny_model(settings.models_dir / "posed", architecture="skeletongaitpp")
    with pytest.raises(ValueError, match="which no upload has"):
        open_encoder(settings, open_engine(settings), "posed")

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.card import POSE_READERS
from models.checkpoint import card_of, save
from models.networks.registry import build
from tests.training.walkers import make_pack
from training.data.identities import identity_hash

NARROW = {"channels": [4, 4, 8, 8], "parts": 4, "embedding_channels": 8}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny networks gain nothing from threads, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn walkers to train on and four to test on."""
    path = tmp_path_factory.mktemp("packs") / "drawn.pack"
    make_pack(path, subjects=10, test_subjects=4)
    return path


@pytest.fixture(scope="session")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same walkers, with pose maps."""
    path = tmp_path_factory.mktemp("packs") / "posed.pack"
    make_pack(path, subjects=10, test_subjects=4, pose_maps=True)
    return path


@pytest.fixture(scope="session")
def pack_for(pack: Path, posed: Path) -> Callable[[str], Path]:
    """The walkers as a network of the name reads them."""
    return lambda architecture: posed if architecture in POSE_READERS else pack


@pytest.fixture(scope="session")
def make_teacher(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Untrained checkpoints, which teach as well as any where only plumbing is tested."""

    def make(
        *,
        architecture: str = "gaitbase",
        subjects: int = 6,
        known: bool = True,
        seed: int = 1,
        **config: object,
    ) -> Path:
        torch.manual_seed(seed)
        network = build(architecture, {**NARROW, "identities": subjects, **config})
        ids = [f"s{i:02d}" for i in range(subjects)]
        training = {"identity_hash": identity_hash(ids)} if known else {}
        path = tmp_path_factory.mktemp("teachers") / "teacher"
        save(path, network, card_of(network, name="t", metric="euclidean", training=training))
        return path

    return make

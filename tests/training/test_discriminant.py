from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.checkpoint import Card
from models.networks.network import GaitNetwork
from models.registry import build
from tests.training.walkers import make_pack
from training.discriminant import discriminant, folded
from training.events import Silent
from training.recipe import RecipeError
from training.refinement import refine

PARTS, WIDTH = 3, 8


def people(walks: int, identities: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose people differ in two channels, behind a lot of noise in the others."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities), walks)
    noise = rng.normal(size=(len(labels), PARTS, WIDTH)) * np.linspace(0.3, 4.0, WIDTH)
    who = rng.normal(size=(identities, PARTS, WIDTH)) * np.array([1.0, 1.0] + [0.0] * (WIDTH - 2))
    return (who[labels] + noise + 5.0).astype(np.float32), labels


def rank1(embeddings: np.ndarray, labels: np.ndarray) -> float:
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    alike = np.einsum("apc,bpc->ab", unit, unit)
    np.fill_diagonal(alike, -np.inf)
    return float(np.mean(labels[alike.argmax(axis=1)] == labels))


def test_directions_solve_the_generalised_eigenvalue_problem_of_the_textbook() -> None:
    embeddings, labels = people(walks=5, identities=30)
    found = discriminant(embeddings, labels, 4, shrinkage=0.0)
    for part in range(PARTS):
        walks = embeddings[:, part].astype(np.float64)
        means = np.stack([walks[labels == label].mean(axis=0) for label in range(30)])
        within = sum(
            np.outer(walk - means[label], walk - means[label])
            for walk, label in zip(walks, labels, strict=True)
        ) / (len(walks) - 30)
        between = sum(np.outer(mean - walks.mean(0), mean - walks.mean(0)) for mean in means)
        ratios, directions = np.linalg.eig(np.linalg.solve(within, between))
        expected = directions[:, np.argsort(-ratios.real)[:4]].real
        cosine = np.abs(np.sum(found.matrices[part] * expected, axis=0)) / (
            np.linalg.norm(found.matrices[part], axis=0) * np.linalg.norm(expected, axis=0)
        )
        np.testing.assert_allclose(cosine, 1.0, atol=1e-6)
        inside = found.matrices[part].T @ within @ found.matrices[part]
        ratio = np.maximum(np.sort(ratios.real)[::-1][:4] / 30 - 1 / 5, 1e-3)
        np.testing.assert_allclose(inside, np.diag(ratio / (0.5 + ratio)), atol=1e-8)


def test_people_never_seen_are_told_apart_better_by_the_directions_than_by_all_channels() -> None:
    found = discriminant(*people(walks=8, identities=60), channels=2)
    embeddings, labels = people(walks=4, identities=25, seed=1)
    reduced = np.einsum("npc,pcd->npd", embeddings - found.centre, found.matrices)
    assert rank1(reduced, labels) > rank1(embeddings - found.centre, labels) + 0.2


def test_directions_in_which_people_hardly_differ_do_no_harm() -> None:
    embeddings, labels = people(walks=4, identities=25, seed=1)

    def told_apart(channels: int) -> float:
        found = discriminant(*people(walks=8, identities=60), channels)
        return rank1(np.einsum("npc,pcd->npd", embeddings - found.centre, found.matrices), labels)

    assert told_apart(WIDTH) > told_apart(2) - 0.05


@pytest.mark.parametrize(
    ("walks", "identities", "channels"), [(4, 30, WIDTH + 1), (4, 3, 3), (1, 30, 4)]
)
def test_what_the_walks_cannot_show_is_refused(walks: int, identities: int, channels: int) -> None:
    with pytest.raises(ValueError, match="identit"):
        discriminant(*people(walks, identities), channels)


def small(identities: int) -> GaitNetwork:
    torch.manual_seed(0)
    return build(
        "gaitbase",
        {"channels": (4, 4, 8, 8), "embedding_channels": WIDTH, "parts": 4}
        | {"identities": identities},
    ).eval()


def test_a_folded_network_embeds_as_the_discriminants_of_the_given_network_do() -> None:
    network = small(identities=5)
    walks = torch.rand(6, 3, 64, 44)
    with torch.no_grad():
        before = network(walks).embeddings  # [n, c, p]
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 4)
    embeddings = rng.normal(size=(40, 4, WIDTH)).astype(np.float32)
    found = discriminant(embeddings, labels, 3)
    shorter = folded(network, found)
    with torch.no_grad():
        after = shorter.matching(shorter(walks).embeddings)
    expected = np.einsum("ncp,pcd->ndp", before.numpy() - found.centre.T[None], found.matrices)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(after.numpy(), expected, atol=1e-5)
    assert shorter.identities == 0


def test_the_command_writes_a_shorter_checkpoint_that_says_how_it_was_made(tmp_path: Path) -> None:
    network = small(identities=5)
    card = Card.of(network, name="long", metric="euclidean", threshold=0.5, training={"seed": 7})
    written = checkpoint.save(tmp_path / "long", network, card)
    pack = make_pack(tmp_path / "walks.pack", subjects=6)
    new = refine(
        tmp_path / "long", pack.path, tmp_path / "short", Silent(), channels=3, shrinkage=0.1
    )
    loaded, _ = checkpoint.load(tmp_path / "short", "cpu")
    assert (loaded.channels, loaded.identities) == (3, 0)
    assert (new.metric, new.threshold) == ("cosine", None)
    assert new.training["seed"] == 7
    made = new.training["discriminant"]
    assert isinstance(made, dict)
    assert (made["checkpoint"], made["subjects"], made["sequences"]) == (
        written.digest,
        6,
        len(pack),
    )
    with pytest.raises(RecipeError, match="identit"):
        refine(
            tmp_path / "long", pack.path, tmp_path / "other", Silent(), channels=6, shrinkage=0.1
        )
    assert not (tmp_path / "other").exists()

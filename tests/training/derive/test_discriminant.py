from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.card import Card
from models.checkpoint import card_of
from models.networks.gaitgl import GeneralisedMean
from models.networks.network import GaitNetwork
from models.networks.registry import build
from tests.training.walkers import make_pack
from training.data.pack import Pack, PackWriter
from training.derive import refinement
from training.derive.discriminant import (
    Discriminant,
    compared,
    discriminant,
    folded,
    mixed_again,
    mixing,
    unprojected,
)
from training.derive.refinement import refine, remix
from training.process.events import SilentReporter
from training.recipe import RecipeError

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
    found = discriminant(*people(walks=8, identities=60), channels=2, shrinkage=0.1)
    embeddings, labels = people(walks=4, identities=25, seed=1)
    assert rank1(found.of(embeddings), labels) > rank1(embeddings - found.centre, labels) + 0.2


def test_directions_in_which_people_hardly_differ_do_no_harm() -> None:
    def told_apart(channels: int) -> float:
        found = discriminant(*people(walks=8, identities=60), channels, shrinkage=0.1)
        drawn = [people(walks=4, identities=25, seed=seed) for seed in range(1, 9)]
        return float(np.mean([rank1(found.of(embeddings), labels) for embeddings, labels in drawn]))

    # Of one draw it says little: from 0.08 less to 0.10 more (12 draws).
    assert told_apart(WIDTH) > told_apart(2) - 0.05


@pytest.mark.parametrize(
    ("walks", "identities", "channels"), [(4, 30, WIDTH + 1), (4, 3, 3), (1, 30, 4)]
)
def test_what_the_walks_cannot_show_is_refused(walks: int, identities: int, channels: int) -> None:
    with pytest.raises(ValueError, match="identit"):
        discriminant(*people(walks, identities), channels, shrinkage=0.1)


def coats(walks: int, identities: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """People who differ in every part, in coats that change all parts of a walk alike."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities), walks)
    who = rng.normal(size=(identities, PARTS, 2))
    coat = 4.0 * rng.normal(size=(len(labels), 1, 2))
    return who[labels] + coat + 0.3 * rng.normal(size=(len(labels), PARTS, 2)), labels


def test_parts_that_explain_one_another_see_through_a_coat_that_changes_them_all() -> None:
    mixed = mixing(*coats(walks=8, identities=60, seed=0), shrinkage=0.1)
    embeddings, labels = coats(walks=4, identities=25, seed=1)
    seen = np.einsum("npc,qdpc->nqd", embeddings, mixed)
    # 0.31 to 0.61 more in 12 draws
    assert rank1(seen, labels) > rank1(embeddings, labels) + 0.2


def test_mixed_parts_compare_as_the_discriminants_of_all_parts_do_and_stay_in_their_places() -> (
    None
):
    embeddings, labels = people(walks=5, identities=60)
    embeddings = embeddings[:, :, :4] - 5.0
    rows = embeddings.reshape(len(labels), 1, -1)
    together = discriminant(rows, labels, PARTS * 4, shrinkage=0.1)
    mixed = mixing(embeddings, labels, shrinkage=0.1)
    seen = np.einsum("npc,qdpc->nqd", embeddings, mixed).reshape(len(labels), -1)
    wanted = together.of(rows + together.centre)[:, 0]
    np.testing.assert_allclose(seen @ seen.T, wanted @ wanted.T, atol=1e-6)
    # These parts vary independently, so each reads itself and hardly the others.
    weight = np.linalg.norm(mixed.swapaxes(1, 2), axis=(2, 3))
    assert weight.diagonal().min() > 2 * (weight - np.diag(weight.diagonal())).max()


def test_mixing_takes_more_people_than_an_embedding_has_numbers() -> None:
    embeddings, labels = people(walks=4, identities=PARTS * WIDTH)
    with pytest.raises(ValueError, match="identities"):
        mixing(embeddings, labels, shrinkage=0.1)


def small(identities: int, architecture: str = "gaitbase", **more: object) -> GaitNetwork:
    torch.manual_seed(0)
    return build(
        architecture,
        {"channels": (4, 4, 8, 8), "embedding_channels": WIDTH, "parts": 4}
        | {"identities": identities, **more},
    ).eval()


def with_its_first_head() -> GaitNetwork:
    """A GaitGL whose embeddings are normalised, with an exponent it was not born with."""
    network = small(5, "gaitgl", projection_norm=True, classifier="product")
    norm, pooling = network.head.projection.norm, network.pooling
    assert norm is not None
    assert isinstance(pooling, GeneralisedMean)
    with torch.no_grad():
        pooling.exponent.fill_(3.0)
        for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert vector is not None
            vector.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("first_head", [False, True])
@pytest.mark.parametrize("mixes", [False, True])
def test_a_folded_network_embeds_as_the_discriminants_of_the_given_network_do(
    mixes: bool, first_head: bool
) -> None:
    network = with_its_first_head() if first_head else small(identities=5)
    walks = torch.rand(6, 3, 64, 44)
    with torch.no_grad():
        before = network(walks).embeddings  # [n, c, p]
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 4)
    embeddings = rng.normal(size=(80, 4, WIDTH)).astype(np.float32)
    found = discriminant(embeddings, labels, 3, shrinkage=0.1)
    mixed = mixing(found.of(embeddings), labels, shrinkage=0.1) if mixes else None
    shorter = folded(network, found, mixed)
    with torch.no_grad():
        after = shorter.matching(shorter(walks).embeddings)
    expected = found.of(before.numpy().swapaxes(1, 2))
    if mixed is not None:
        expected = np.einsum("npc,qdpc->nqd", expected, mixed)
    expected /= np.linalg.norm(expected, axis=2, keepdims=True)
    np.testing.assert_allclose(after.numpy(), expected, atol=1e-5)
    assert shorter.identities == 0


@pytest.mark.slow
def test_refining_again_with_the_same_walks_gives_the_same_network(tmp_path: Path) -> None:
    network = small(identities=5)
    card = card_of(network, name="long", metric="euclidean")
    checkpoint.save(tmp_path / "long", network, card)
    pack = make_pack(tmp_path / "walks.pack", subjects=13)
    for source, out in (("long", "once"), ("once", "twice")):
        refine(
            tmp_path / source,
            pack.path,
            tmp_path / out,
            SilentReporter(),
            channels=3,
            shrinkage=0.1,
            mixing_shrinkage=0.3,
        )
    once, twice = (checkpoint.load(tmp_path / name, "cpu")[0] for name in ("once", "twice"))
    assert once.config == twice.config
    for name, tensor in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], tensor)


def test_the_command_writes_a_shorter_checkpoint_that_says_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small(identities=5)
    card = card_of(network, name="long", metric="euclidean", threshold=0.5, training={"seed": 7})
    written = checkpoint.save(tmp_path / "long", network, card)
    pack = make_pack(tmp_path / "walks.pack", subjects=13)

    def refined(channels: int, name: str) -> Card:
        source, out = tmp_path / "long", tmp_path / name
        return refine(
            source,
            pack.path,
            out,
            SilentReporter(),
            channels=channels,
            shrinkage=0.1,
            mixing_shrinkage=0.3,
        )

    new = refined(3, "short")
    loaded, _ = checkpoint.load(tmp_path / "short", "cpu")
    assert (loaded.channels, loaded.identities, loaded.config.mixing) == (3, 0, True)
    assert (new.metric, new.threshold) == ("cosine", None)
    assert new.training["seed"] == 7
    made = new.training["discriminant"]
    assert isinstance(made, dict)
    assert made["checkpoint"] == written.digest
    assert (made["subjects"], made["sequences"]) == (13, len(pack))
    # What the walks cannot show is said before all of them are embedded.
    monkeypatch.setattr(refinement, "embed_with_network", None)
    with pytest.raises(RecipeError, match=r"--mixing: 16 directions .* 13; or choose --no-mixing"):
        refined(4, "other")
    with pytest.raises(RecipeError, match=r"--channels: .*identit"):
        refined(14, "other")
    assert not (tmp_path / "other").exists()


def in_scenes(
    places: int, people: int, scenes: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Walks of people, two in each scene of their place, whose scenes weigh more than they do.

    Returns:
        Embeddings [n, PARTS, 4], labels, places and scenes [n]. A scene moves the second pair of
        channels and the first by half, a person the first pair.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(places * people), 2 * scenes)
    place = labels // people
    scene = place * scenes + np.tile(np.repeat(np.arange(scenes), 2), places * people)
    who = rng.normal(size=(places * people, PARTS, 4)) * np.array([1, 1, 0.1, 0.1])
    where = 3.0 * rng.normal(size=(places * scenes, PARTS, 4)) * np.array([0.2, 0.2, 1, 1])
    noise = 0.2 * rng.normal(size=(len(labels), PARTS, 4))
    return who[labels] + where[scene] + noise, labels, place, scene


def found_elsewhere(
    embeddings: np.ndarray, labels: np.ndarray, place: np.ndarray, scene: np.ndarray
) -> float:
    """How often the nearest walk of other scenes, or of strangers in the same one, is one's own."""
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    alike = np.einsum("apc,bpc->ab", unit, unit)
    own = labels[:, None] == labels[None, :]
    alike[(own & (scene[:, None] == scene[None, :])) | (place[:, None] != place[None, :])] = -np.inf
    return float(np.mean(labels[alike.argmax(axis=1)] == labels))


def test_people_are_found_in_other_scenes_by_being_told_from_those_who_share_theirs() -> None:
    # Few scenes, so that the mean of a person's walks is much of where they were filmed.
    embeddings, labels, place, _ = in_scenes(places=12, people=5, scenes=2, seed=0)
    plain = discriminant(embeddings, labels, 2, shrinkage=0.1)
    told = discriminant(embeddings, labels, 2, shrinkage=0.1, sharing=place)
    gains = []
    for seed in range(1, 6):
        others, who, there, scene = in_scenes(places=6, people=8, scenes=2, seed=seed)
        after, before = (
            found_elsewhere(one.of(others), who, there, scene) for one in (told, plain)
        )
        gains.append(after - before)
    assert np.mean(gains) > 0.03


def test_one_place_for_all_changes_nothing() -> None:
    embeddings, labels = people(walks=5, identities=30)
    here = np.zeros(len(labels), np.int64)
    one, other = (
        discriminant(embeddings, labels, 4, shrinkage=0.1, sharing=sharing)
        for sharing in (None, here)
    )
    # But for the mean of all walks and that of all people, which are equal here.
    np.testing.assert_allclose(one.matrices, other.matrices, atol=1e-9)


def test_as_many_people_more_are_needed_as_there_are_places() -> None:
    embeddings, labels = people(walks=3, identities=12)
    discriminant(embeddings, labels, 8, shrinkage=0.1, sharing=labels // 3)
    with pytest.raises(ValueError, match="in 6 sets of scenes"):
        discriminant(embeddings, labels, 8, shrinkage=0.1, sharing=labels // 2)


def test_parts_mixed_again_read_what_the_network_compared() -> None:
    network = folded(small(identities=5), *_some_discriminants())
    walks = torch.rand(6, 3, 64, 44)
    with torch.no_grad():
        bare = unprojected(network)
        pooled = bare.matching(bare(walks).embeddings).numpy()
        before = network.matching(network(walks).embeddings).numpy()
    seen = compared(network, pooled)
    np.testing.assert_allclose(
        seen / np.linalg.norm(seen, axis=2, keepdims=True), before, atol=1e-5
    )
    rng = np.random.default_rng(3)
    mixed = rng.normal(size=(4, 3, 4, 3))
    second = mixed_again(network, mixed)
    with torch.no_grad():
        after = second.matching(second(walks).embeddings).numpy()
    expected = np.einsum("npc,qdpc->nqd", seen, mixed)
    expected /= np.linalg.norm(expected, axis=2, keepdims=True)
    np.testing.assert_allclose(after, expected, atol=1e-5)


def _some_discriminants() -> tuple[Discriminant, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 4)
    embeddings = rng.normal(size=(80, 4, WIDTH)).astype(np.float32)
    found = discriminant(embeddings, labels, 3, shrinkage=0.1)
    return found, mixing(found.of(embeddings), labels, shrinkage=0.1)


def scenes_pack(path: Path, places: int, people: int) -> Pack:
    rng = np.random.default_rng(0)
    with PackWriter(path, "binary") as writer:
        for number in range(places * people):
            for walk in range(3):
                frames = (rng.random((6, 64, 64)) < 0.3).astype(np.uint8) * np.uint8(255)
                told = {"scene": f"scene-{number // people}-{walk % 2}"}
                writer.add(f"s{number:02d}", f"nm-{walk}", "090", frames, told)
        return writer.finish()


def test_the_command_mixes_again_by_scenes_and_keeps_what_each_part_reads(tmp_path: Path) -> None:
    network = folded(small(identities=5), *_some_discriminants())
    card = card_of(network, name="short", metric="cosine", threshold=0.5, training={"seed": 7})
    checkpoint.save(tmp_path / "short", network, card)
    pack = scenes_pack(tmp_path / "scenes.pack", places=4, people=5)
    written = remix(
        tmp_path / "short", pack.path, tmp_path / "again", SilentReporter(), mixing_shrinkage=1.0
    )
    step = written.training["mixed_again"]
    assert isinstance(step, dict)
    assert (step["subjects"], step["sequences"], step["sets_of_scenes"]) == (20, 60, 4)
    assert step["checkpoint"] == checkpoint.load(tmp_path / "short", "cpu")[1].digest
    assert written.training["seed"] == 7
    assert written.threshold is None
    second, _ = checkpoint.load(tmp_path / "again", "cpu")
    torch.testing.assert_close(second.head.projection.weight, network.head.projection.weight)
    assert second.head.mixing is not None
    assert network.head.mixing is not None
    assert not torch.allclose(second.head.mixing.weight, network.head.mixing.weight)


def test_what_can_not_be_mixed_again_is_refused(tmp_path: Path) -> None:
    pack = scenes_pack(tmp_path / "scenes.pack", places=4, people=3)
    for name, network, reason in (
        ("long", small(identities=5), "not compared behind its neck"),
        ("short", folded(small(identities=5), *_some_discriminants()), "identities in 4 sets"),
    ):
        checkpoint.save(tmp_path / name, network, card_of(network, name=name, metric="cosine"))
        with pytest.raises(RecipeError, match=reason):
            remix(
                tmp_path / name,
                pack.path,
                tmp_path / "out",
                SilentReporter(),
                mixing_shrinkage=1.0,
            )
    assert not (tmp_path / "out").exists()

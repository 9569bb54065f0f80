import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.card import CheckpointError, read_card
from models.checkpoint import card_of
from models.encoder import Encoder
from models.networks.registry import build
from models.silhouettes import gait_energy_image
from tests.training.walkers import make_pack
from training.data import Pack, PackError, PackWriter
from training.evaluation import (
    ProtocolMismatch,
    Resampling,
    evaluate_checkpoint,
    labels_of,
)
from training.evaluation.baselines import energy_embeddings, untrained_encoder
from training.evaluation.embedding import embed_with_encoder

QUICK = Resampling(replicates=20)
TINY = {"channels": [4, 4, 8, 8], "embedding_channels": 8, "parts": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny", seed=0)


def save_tiny(directory: Path, *, seed: int, mirror: bool = False) -> Path:
    torch.manual_seed(seed)
    network = build("gaitbase", TINY)
    card = card_of(network, name=f"tiny-{seed}", metric="euclidean", mirror=mirror)
    checkpoint.save(directory, network, card)
    return directory


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "drawn.pack"
    make_pack(path, subjects=6, test_subjects=4)
    return path


def test_a_checkpoint_is_judged_on_the_test_subjects_beside_both_baselines(
    tiny: Path, pack: Path
) -> None:
    told: list[tuple[int, int]] = []
    result = evaluate_checkpoint(
        tiny,
        pack,
        "cross-view",
        device="cpu",
        resampling=QUICK,
        progress=lambda done, total: told.append((done, total)),
    )
    assert (result.subjects, result.sequences) == (4, 24)
    assert [row.name for row in result.rows] == ["tiny-0", "untrained network", "gait energy image"]
    assert [row.role for row in result.rows] == ["checkpoint", "baseline", "baseline"]
    assert result.dataset == "drawn.pack"
    assert result.dataset_hash == Pack.open(pack).content_hash
    assert result.rows[0].digest == read_card(tiny).digest
    assert told[-1] == (48, 48)  # two networks, 24 walks
    assert {figure.name for figure in result.rows[0].figures} >= {"normal rank-1", "coat rank-1"}


def test_without_a_partition_everybody_is_a_test_subject(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.pack"
    make_pack(path, subjects=3)
    (path / "partition.json").unlink()
    result = evaluate_checkpoint(
        tiny, path, "cross-view", device="cpu", baselines=False, resampling=QUICK
    )
    assert result.subjects == 3
    assert len(result.rows) == 1


def test_mirrored_probes_make_a_mirrored_pack_of_probes_no_harder(
    tiny: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "mirrored.pack"
    with PackWriter(path) as writer:
        for subject in range(4):
            walk = (rng.random((1, 64, 64)) < 0.3).astype(np.uint8) * np.uint8(255)
            writer.add(f"s{subject}", "1", "090", walk)
            writer.add(f"s{subject}", "2", "090", np.ascontiguousarray(walk[:, :, ::-1]))
        writer.finish()
    found = {
        mirror: evaluate_checkpoint(
            tiny, path, "nine-pairs", device="cpu", mirror=mirror, resampling=QUICK
        )
        for mirror in (False, True)
    }
    for row in found[True].rows:
        assert row.mirrored
        assert row.figures[0].estimate.value == 1.0, row.name
    energy = found[False].rows[-1]
    assert energy.figures[0].estimate.value < 1.0


def test_a_checkpoint_that_is_blind_to_mirroring_embeds_once(tmp_path: Path, pack: Path) -> None:
    blind = save_tiny(tmp_path / "blind", seed=0, mirror=True)
    told: list[int] = []
    result = evaluate_checkpoint(
        blind,
        pack,
        "cross-view",
        device="cpu",
        mirror=True,
        baselines=False,
        resampling=QUICK,
        progress=lambda _, total: told.append(total),
    )
    assert told[-1] == 24
    encoder = Encoder.open(blind, device="cpu")
    test = Pack.open(pack).subset(["s02"])
    np.testing.assert_allclose(
        embed_with_encoder(encoder, test), embed_with_encoder(encoder, test, mirror=True), atol=1e-5
    )
    assert len(result.rows) == 1


def test_another_checkpoint_is_a_row_with_a_paired_difference(
    tiny: Path, pack: Path, tmp_path: Path
) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    result = evaluate_checkpoint(
        tiny,
        pack,
        "cross-view",
        device="cpu",
        baselines=False,
        against=[other, tiny],
        resampling=QUICK,
    )
    assert [row.name for row in result.rows] == ["tiny-0", "tiny-1", "tiny-0"]
    itself = result.differences[1].estimate
    assert (itself.value, itself.low, itself.high) == (0, 0, 0)


def test_evaluating_twice_says_the_same(tiny: Path, pack: Path) -> None:
    one, two = (
        evaluate_checkpoint(tiny, pack, "cross-view", device="cpu", resampling=QUICK)
        for _ in range(2)
    )
    assert one.to_json() == two.to_json()


def test_the_untrained_network_has_the_architecture_and_fresh_weights(tiny: Path) -> None:
    walk = np.full((1, 64, 64), 255, np.uint8)
    trained = Encoder.open(tiny, device="cpu")
    before = torch.random.get_rng_state()
    ours, same, other = (untrained_encoder(tiny, device="cpu", seed=s) for s in (5, 5, 6))
    assert torch.equal(before, torch.random.get_rng_state())
    assert ours.card.config == trained.card.config
    np.testing.assert_array_equal(ours.encode([walk]), same.encode([walk]))
    assert not np.allclose(ours.encode([walk]), other.encode([walk]))
    assert not np.allclose(ours.encode([walk]), trained.encode([walk]))


def test_an_untrained_quantised_network_is_a_float_one(tmp_path: Path) -> None:
    network = build("gaitbase", {**TINY, "quantised": "int8"})
    checkpoint.save(tmp_path / "whole", network, card_of(network, name="w", metric="cosine"))
    ours = untrained_encoder(tmp_path / "whole", device="cpu", seed=5)
    assert (ours.card.name, ours.card.config["quantised"]) == ("untrained network", None)
    walks = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
    one, other = ours.encode(list(walks))
    assert not np.allclose(one, other)


def test_energy_embeddings_are_gait_energy_images_laid_flat() -> None:
    walks = [
        (np.random.default_rng(i).random((3, 64, 64)) < 0.5).astype(np.uint8) * np.uint8(255)
        for i in range(2)
    ]
    found = energy_embeddings(walks)
    assert found.shape == (2, 1, 64 * 44)
    np.testing.assert_array_equal(found[1, 0], gait_energy_image(walks[1]).ravel())


def test_the_fields_list_of_probes_is_read_from_the_partition(tmp_path: Path) -> None:
    path = tmp_path / "listed.pack"
    make_pack(path, subjects=2)
    listing = {"TRAIN_SET": [], "TEST_SET": ["s00", "s01"], "PROBE_SET": ["s01-coat-01-090"]}
    (path / "partition.json").write_text(json.dumps(listing))
    labels = labels_of(Pack.open(path))
    assert labels.probes is not None
    (probe,) = np.flatnonzero(labels.probes)
    names = (labels.subjects[probe], labels.conditions[probe], labels.views[probe])
    assert names == ("s01", "coat-01", "090")


def test_a_gallery_that_the_field_lists_makes_all_others_probes(tmp_path: Path) -> None:
    path = tmp_path / "listed.pack"
    make_pack(path, subjects=2)
    listing = {"TRAIN_SET": [], "TEST_SET": ["s00", "s01"], "GALLERY_SET": ["s01-coat-01-090"]}
    (path / "partition.json").write_text(json.dumps(listing))
    labels = labels_of(Pack.open(path))
    assert labels.probes is not None
    (enrolled,) = np.flatnonzero(~labels.probes)
    names = (labels.subjects[enrolled], labels.conditions[enrolled], labels.views[enrolled])
    assert names == ("s01", "coat-01", "090")
    (path / "partition.json").write_text(json.dumps(listing | {"PROBE_SET": ["s00-coat-01-090"]}))
    both = labels_of(Pack.open(path)).probes
    assert both is not None
    assert both.sum() == 1  # as the field reads FreeGait's lists


def test_a_list_of_probes_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.pack"
    make_pack(path, subjects=2)
    listing = {"TRAIN_SET": [], "TEST_SET": ["s00"], "PROBE_SET": "s00"}
    (path / "partition.json").write_text(json.dumps(listing))
    with pytest.raises(PackError, match="PROBE_SET"):
        Pack.open(path)


def test_what_is_wrong_with_the_input_shows_before_anything_is_embedded(
    tiny: Path, pack: Path, tmp_path: Path
) -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError("embedding had begun")

    with pytest.raises(ProtocolMismatch, match="PROBE_SET"):
        evaluate_checkpoint(tiny, pack, "gait3d", device="cpu", progress=never)
    with pytest.raises(ValueError, match="unknown protocol"):
        evaluate_checkpoint(tiny, pack, "gait4d", device="cpu", progress=never)
    with pytest.raises(PackError):
        evaluate_checkpoint(tiny, tmp_path / "none.pack", "cross-view", progress=never)
    with pytest.raises(CheckpointError):
        evaluate_checkpoint(tmp_path / "none", pack, "cross-view", progress=never)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import checkpoint
from models.checkpoint import card_of
from models.encoder import Encoder
from models.encoder.embedding_file import EmbeddingFileError, embed_prepared, embed_walks
from models.opengait import convert
from models.silhouettes import decode, prepare
from tests.models import goldens
from tests.models.networks.test_registry import small


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = small("gaitbase", {})
    checkpoint.save(tmp_path / "model", network, card_of(network, name="m", metric="cosine"))
    return tmp_path / "model"


def read(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def walker(frames: int, stride: float) -> Any:
    """An upright body on two swinging legs, uint8 `[s, 120, 100]`."""
    row, column = np.mgrid[0:120, 0:100]
    swing = stride * np.sin(np.arange(frames)[:, None, None] / 4)
    body = ((column - 50) / 12) ** 2 + ((row - 40) / 30) ** 2 <= 1
    reach = swing * np.clip(row - 60, 0, None) / 50
    legs = (abs(column - 50 - reach) < 5) | (abs(column - 50 + reach) < 5)
    return np.where(body | (legs & (row > 60) & (row < 112)), 255, 0).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaitbase_casiab", "deepgaitv2_casiab_p3d"])
def test_prepared_walks_equal_the_goldens_through_both_commands(tmp_path: Path, name: str) -> None:
    torch.save({"model": goldens.weights(goldens.shapes(name))}, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "model", goldens.NETWORKS[name])
    np.savez(tmp_path / "in.npz", silhouettes=goldens.silhouettes()[:, :12])
    assert embed_prepared(tmp_path / "model", tmp_path / "in.npz", tmp_path / "out.npz") == 3
    written = read(tmp_path / "out.npz")
    assert written.keys() == {"embeddings", "logits"}
    for what, found in written.items():
        assert found.dtype == np.float32
        wanted = goldens.expected(name, f"fan/batch/{what}")
        assert goldens.relative_error(found, wanted) <= goldens.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("mirror", [False, True])
def test_more_walks_than_fit_in_one_call_keep_their_order_and_are_what_a_service_compares(
    mirror: bool, tmp_path: Path
) -> None:
    network, model = small("gaitbase", {}), tmp_path / "model"
    checkpoint.save(model, network, card_of(network, name="m", metric="cosine", mirror=mirror))
    silhouettes = np.random.default_rng(0).integers(0, 256, (9, 15, 64, 44), np.uint8)
    np.savez(tmp_path / "in.npz", silhouettes=silhouettes)
    embed_prepared(model, tmp_path / "in.npz", tmp_path / "out.npz")
    found = read(tmp_path / "out.npz")["embeddings"]
    wanted = Encoder.open(model, precision="float32").encode(list(silhouettes))
    np.testing.assert_allclose(found, wanted.transpose(0, 2, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"masks": np.zeros((1, 1, 64, 44), np.uint8)}, r"not an \.npz file with 'silhouettes'"),
        ({"silhouettes": np.array([{}])}, r"not an \.npz file with 'silhouettes'"),
        ({"silhouettes": np.zeros((1, 1, 64, 44), np.float32)}, "must be uint8"),
        ({"silhouettes": np.zeros((1, 1, 64, 64), np.uint8)}, r"\[1, 1, 64, 64\]"),
        ({"silhouettes": np.zeros((0, 1, 64, 44), np.uint8)}, r"\[0, 1, 64, 44\]"),
        ({"silhouettes": np.zeros((1, 64, 44), np.uint8)}, r"\[1, 64, 44\]"),
    ],
)
def test_prepared_files_of_another_form_are_refused(
    model: Path, tmp_path: Path, arrays: dict[str, Any], complaint: str
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(EmbeddingFileError, match=complaint):
        embed_prepared(model, tmp_path / "in.npz", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_archive_of_arrays_are_refused(
    model: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "in.npz").write_bytes(content)
    with pytest.raises(EmbeddingFileError, match=r"not an \.npz file"):
        embed_prepared(model, tmp_path / "in.npz", tmp_path / "out.npz")


def test_a_single_array_is_no_archive(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((1, 1, 64, 44), np.uint8))
    with pytest.raises(EmbeddingFileError, match=r"not an \.npz file"):
        embed_prepared(model, tmp_path / "in.npy", tmp_path / "out.npz")


@pytest.mark.slow
def test_walks_in_upload_formats_are_embedded_as_the_service_does(
    model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "one.npy", walker(40, 10))
    np.savez_compressed(tmp_path / "two.npz", silhouettes=walker(60, 18))
    files = [tmp_path / "one.npy", tmp_path / "two.npz"]
    assert embed_walks(model, files, tmp_path / "out.npz") == 2
    written = read(tmp_path / "out.npz")
    assert written["walks"].tolist() == [str(path) for path in files]
    prepared = [prepare(decode(path.read_bytes())).silhouettes for path in files]
    assert written["frames"].tolist() == [len(walk) for walk in prepared]
    wanted = Encoder.open(model).encode(prepared).transpose(0, 2, 1)
    np.testing.assert_allclose(written["embeddings"], wanted, rtol=1e-6)


def test_a_refused_walk_is_named_and_nothing_written(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", walker(40, 10))
    (tmp_path / "bad.png").write_bytes(b"text")
    with pytest.raises(EmbeddingFileError, match=r"bad\.png"):
        embed_walks(model, [tmp_path / "good.npy", tmp_path / "bad.png"], tmp_path / "out.npz")
    with pytest.raises(EmbeddingFileError, match="no walk"):
        embed_walks(model, [], tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.fixture
def reads_pose(tmp_path: Path) -> Path:
    network = small("skeletongaitpp", {})
    checkpoint.save(tmp_path / "posed", network, card_of(network, name="m", metric="cosine"))
    return tmp_path / "posed"


def test_a_network_of_pose_maps_embeds_prepared_walks_that_have_them(
    reads_pose: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    silhouettes = rng.integers(0, 256, (2, 3, 64, 44), dtype=np.uint8)
    maps = rng.integers(0, 256, (2, 3, 2, 64, 44), dtype=np.uint8)
    np.savez(tmp_path / "in.npz", silhouettes=silhouettes, pose_maps=maps)
    assert embed_prepared(reads_pose, tmp_path / "in.npz", tmp_path / "out.npz") == 2
    found = read(tmp_path / "out.npz")["embeddings"].transpose(0, 2, 1)
    walks = list(np.concatenate([maps, silhouettes[:, :, None]], 2))
    encoder = Encoder.open(reads_pose, device="cpu", precision="float32")
    np.testing.assert_allclose(encoder.encode(walks), found, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"\[s, 3, h, w\] \(limbs, joints, silhouette\)"):
        encoder.encode(list(silhouettes))


@pytest.mark.parametrize(
    ("maps", "complaint"),
    [
        (None, "'silhouettes' and 'pose_maps'"),
        (np.zeros((1, 2, 2, 64, 44), np.uint8), r"'pose_maps' must be uint8 \[n, s, 2, 64, 44\]"),
        (np.zeros((1, 3, 2, 64, 64), np.uint8), "'pose_maps' must be"),
        (np.zeros((1, 3, 2, 64, 44)), "not float64"),
    ],
)
def test_prepared_walks_without_fitting_pose_maps_are_refused(
    reads_pose: Path, tmp_path: Path, maps: Any, complaint: str
) -> None:
    arrays: dict[str, Any] = {"silhouettes": np.zeros((1, 3, 64, 44), np.uint8)}
    if maps is not None:
        arrays["pose_maps"] = maps
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(EmbeddingFileError, match=complaint):
        embed_prepared(reads_pose, tmp_path / "in.npz", tmp_path / "out.npz")


def test_no_upload_is_embedded_by_a_network_that_reads_pose_maps(
    reads_pose: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "walk.npy", walker(20, 12.0))
    with pytest.raises(EmbeddingFileError, match="pose maps beside silhouettes"):
        embed_walks(reads_pose, [tmp_path / "walk.npy"], tmp_path / "out.npz")
    with pytest.raises(ValueError, match="which no upload has"):
        Encoder.for_uploads(reads_pose, "cpu")

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import checkpoint
from models.card import (
    CARD,
    WEIGHTS,
    Card,
    CardThreshold,
    CheckpointError,
    CheckpointMismatch,
    ModelReference,
    read_card,
)
from models.checkpoint import card_of
from models.networks.network import GaitNetwork
from tests.models.networks.test_registry import NETWORKS, small, walks


def small_card(network: GaitNetwork, **more: Any) -> Card:
    return card_of(network, name="small", metric="cosine", **more)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    network = small("gaitbase", {})
    checkpoint.save(tmp_path / "small", network, small_card(network))
    return tmp_path / "small"


def sign_again(directory: Path) -> None:
    """What someone does who knows how the digest is made."""
    fields = json.loads((directory / CARD).read_text())
    del fields["digest"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    weights = hashlib.sha256((directory / WEIGHTS).read_bytes()).digest()
    digest = hashlib.sha256(weights + text.encode()).hexdigest()
    (directory / CARD).write_text(json.dumps({**fields, "digest": digest}))


def edit_card(directory: Path, **changes: Any) -> None:
    fields = json.loads((directory / CARD).read_text())
    (directory / CARD).write_text(json.dumps({**fields, **changes}))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_a_network_survives_a_round_trip(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    network = small(name, config)
    card = checkpoint.save(tmp_path / "a", network, small_card(network, notes="ünï"))
    restored, restored_card = checkpoint.load(tmp_path / "a")
    assert restored_card == card == read_card(tmp_path / "a")
    assert card.reference == ModelReference("small", card.digest)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [CARD, WEIGHTS]
    assert not restored.training
    with torch.inference_mode():
        torch.testing.assert_close(
            restored(walks(2, 3, of=name)), network(walks(2, 3, of=name)), rtol=0, atol=0
        )


@pytest.mark.slow
def test_a_loaded_network_can_be_trained_further(saved: Path) -> None:
    network, _ = checkpoint.load(saved)
    network.train()(walks(2, 3)).embeddings.sum().backward()
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.head.projection.weight.grad is not None


def test_half_precision_halves_the_file_and_is_float32_once_loaded(tmp_path: Path) -> None:
    network = small("gaitbase", {}, channels=(16, 16, 16, 16))
    checkpoint.save(tmp_path / "full", network, small_card(network))
    checkpoint.save(tmp_path / "half", network, small_card(network), half=True)
    full, half = ((tmp_path / which / WEIGHTS).stat().st_size for which in ("full", "half"))
    assert half < 0.65 * full
    restored, _ = checkpoint.load(tmp_path / "half")
    assert {p.dtype for p in restored.parameters()} == {torch.float32}
    with torch.inference_mode():
        exact, rounded = network(walks(2, 3)).embeddings, restored(walks(2, 3)).embeddings
    assert torch.cosine_similarity(exact, rounded, dim=1).min() > 0.9999
    vectors = [key for key, tensor in network.state_dict().items() if tensor.ndim < 2]
    for key in vectors:
        assert torch.equal(restored.state_dict()[key], network.state_dict()[key])


def test_the_digest_follows_from_the_contents_alone(tmp_path: Path) -> None:
    network = small("gaitbase", {})
    digests = [
        checkpoint.save(tmp_path / name, network, card).digest
        for name, card in [
            ("a", small_card(network)),
            ("b", small_card(network)),
            ("c", small_card(network, notes="other")),
        ]
    ]
    assert digests[0] == digests[1] != digests[2]
    with torch.no_grad():
        network.head.projection.weight[0, 0, 0] += 1e-3
    assert checkpoint.save(tmp_path / "d", network, small_card(network)).digest not in digests


def test_everything_on_a_card_survives(tmp_path: Path) -> None:
    network = small("gaitbase", {})
    card = small_card(
        network,
        mirror=True,
        threshold=0.71,
        thresholds=(CardThreshold(target_fpir=0.01, gallery_subjects=100, threshold=0.8),),
        training={"recipe": "gaitkd", "seed": 1, "losses": [{"kind": "triplet", "weight": 1.0}]},
        metrics={"rank1": {"value": 0.9, "interval": [0.8, 0.95]}},
        notes="trained on nobody",
    )
    checkpoint.save(tmp_path / "a", network, card)
    _, restored = checkpoint.load(tmp_path / "a")
    assert restored.model_copy(update={"digest": ""}) == card


@pytest.mark.parametrize("file", [WEIGHTS, CARD])
def test_any_changed_byte_is_noticed(saved: Path, file: str) -> None:
    content = bytearray((saved / file).read_bytes())
    position = content.index(b"small") if file == CARD else len(content) - 5
    content[position] ^= 1
    (saved / file).write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="changed or damaged"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "changes", [{"notes": "better"}, {"threshold": 0.0}, {"metric": "euclidean"}]
)
def test_an_edited_card_is_noticed(saved: Path, changes: dict[str, Any]) -> None:
    edit_card(saved, **changes)
    with pytest.raises(CheckpointMismatch, match="changed or damaged"):
        checkpoint.load(saved)


def test_a_card_of_other_formatting_is_the_same_card(saved: Path) -> None:
    fields = json.loads((saved / CARD).read_text())
    (saved / CARD).write_text(json.dumps(dict(reversed(fields.items())), indent=8))
    checkpoint.load(saved)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("head.neck.bias"), "'head.neck.bias' is missing"),
        (lambda t: t.update(extra=torch.ones(1)), "'extra' does not belong"),
        (lambda t: t.update({"head.neck.bias": torch.ones(3)}), r"shape \[3\], not \[80\]"),
        (lambda t: t.update({"head.neck.bias": torch.ones(80).long()}), "is torch.int64"),
        (lambda t: t.update({"head.neck.bias": torch.ones(80).double()}), "is torch.float64"),
        (lambda t: t["head.neck.bias"].fill_(torch.nan), "'head.neck.bias' is not finite"),
        (lambda t: t.clear(), r"is missing; .* and \d+ more"),
    ],
)
def test_weights_that_are_not_the_networks_are_named_even_if_signed(
    saved: Path, change: Callable[[dict[str, torch.Tensor]], None], complaint: str
) -> None:
    edit_weights(saved, change)
    sign_again(saved)
    with pytest.raises(CheckpointMismatch, match=complaint):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architecture": "resnet"}, "unknown architecture 'resnet'; known"),
        ({"config": {"colour": "red"}}, "colour"),
        ({"config": {"channels": [4096] * 4, "embedding_channels": 4096}}, "contradict"),
        ({"parts": 15}, "contradict"),
        ({"config": {}, "channels": 256, "identities": 0}, "has shape"),
        ({"schema_version": 2}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"metric": "manhattan"}, "metric"),
        ({"input": {"height": 0, "width": 44}}, "height"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": -1.5}, "threshold"),
        ({"architecture": "a" * 65}, "architecture"),
    ],
)
def test_a_card_that_can_not_be_is_refused_even_if_signed(
    saved: Path, changes: dict[str, Any], complaint: str
) -> None:
    edit_card(saved, **changes)
    sign_again(saved)
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(saved)


def test_a_list_of_too_many_tensors_is_refused_before_it_is_parsed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "parse_tensors", lambda _: pytest.fail("it was parsed"))
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": nothing for number in range(5000)}).encode()
    (saved / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
    sign_again(saved)
    with pytest.raises(CheckpointError, match=r"its header is said to have \d+ bytes"):
        checkpoint.load(saved)


GIANT_HEADER = struct.pack("<Q", 2**62) + b"{}"
BEYOND_THE_FILE = json.dumps(
    {"head.neck.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        GIANT_HEADER,
        struct.pack("<Q", len(BEYOND_THE_FILE)) + BEYOND_THE_FILE,
        struct.pack("<Q", 4) + b"[[[[",
    ],
    ids=["empty", "too short", "giant header", "beyond the file", "not json"],
)
def test_a_file_that_is_no_safetensors_is_refused_even_if_signed(
    saved: Path, content: bytes
) -> None:
    (saved / WEIGHTS).write_bytes(content)
    sign_again(saved)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(saved)


def test_truncated_weights_are_refused(saved: Path) -> None:
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointMismatch, match="changed or damaged"):
        checkpoint.load(saved)
    sign_again(saved)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"parts": ' + b"9" * 5000 + b"}", b"null"],
)
def test_a_broken_card_is_refused(saved: Path, content: bytes) -> None:
    (saved / CARD).write_bytes(content)
    for read in (checkpoint.load, read_card):
        with pytest.raises(CheckpointError, match="not a checkpoint's card"):
            read(saved)


def test_files_over_the_limits_are_not_read_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(CheckpointError, match="larger than 100 bytes"):
        checkpoint.load(saved)
    monkeypatch.setattr("models.card.MAX_CARD_BYTES", 10)
    with pytest.raises(CheckpointError, match="larger than 10 bytes"):
        checkpoint.load(saved)


def test_weights_that_could_not_be_read_again_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small("gaitbase", {})
    monkeypatch.setattr(checkpoint, "MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(CheckpointError, match="100 can be read"):
        checkpoint.save(tmp_path / "small", network, small_card(network))
    assert not (tmp_path / "small").exists()


def test_a_card_whose_text_nobody_can_be_sent_is_refused(saved: Path) -> None:
    fields = json.loads((saved / CARD).read_bytes())
    (saved / CARD).write_text(json.dumps({**fields, "notes": "\ud800"}))
    with pytest.raises(CheckpointError, match="not a checkpoint's card"):
        checkpoint.load(saved)


@pytest.mark.parametrize("file", [WEIGHTS, CARD])
def test_a_missing_file_is_refused(saved: Path, file: str) -> None:
    (saved / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} can't be read"):
        checkpoint.load(saved)


def test_an_earlier_checkpoint_is_replaced_whole(saved: Path) -> None:
    network = small("deepgaitv2", {"mode": "2d"})
    card = checkpoint.save(saved, network, small_card(network))
    assert checkpoint.load(saved)[1] == card
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    network = small("gaitbase", {})
    with pytest.raises(CheckpointError, match=r"holds other files \(thesis.txt\)"):
        checkpoint.save(tmp_path, network, small_card(network))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_replacement_leaves_the_old_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_card(saved)
    rename = Path.rename

    def fail_on_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_new)
    network = small("deepgaitv2", {"mode": "2d"})
    with pytest.raises(OSError, match="on fire"):
        checkpoint.save(saved, network, small_card(network))
    assert checkpoint.load(saved)[1] == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_card_of_another_network_is_not_saved(tmp_path: Path) -> None:
    network, other = small("gaitbase", {}), small("gaitbase", {}, identities=4)
    with pytest.raises(CheckpointMismatch, match="the card's config is"):
        checkpoint.save(tmp_path / "a", network, small_card(other))
    assert not (tmp_path / "a").exists()


def test_a_network_that_diverged_is_not_saved(tmp_path: Path) -> None:
    network = small("gaitbase", {})
    with torch.no_grad():
        network.head.projection.weight[0, 0, 0] = torch.inf
    with pytest.raises(CheckpointError, match=r"'head\.projection\.weight' are not finite"):
        checkpoint.save(tmp_path / "a", network, small_card(network))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metrics_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    network = small("gaitbase", {})
    with pytest.raises(ValueError, match=r"(?i)nan|inf|finite"):
        checkpoint.save(tmp_path / "a", network, small_card(network, metrics={"rank1": value}))

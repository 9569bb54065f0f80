"""What OpenGait saves is read, equals the goldens once saved as ours, and is refused when odd."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import checkpoint
from models.card import read_card
from models.networks.network import GaitNetwork
from models.networks.registry import ARCHITECTURES
from models.opengait import OpenGaitError, convert, import_opengait
from tests.models import goldens
from tests.models.opengait import opengait_by_hand

SMALL = (4, 6, 8, 10)
MODES = ("2d", "p3d", "3d")


def save_as_opengait(path: Path, state: dict[str, Tensor], **more: object) -> Path:
    """Write what the field's training loop writes, optimiser and schedule included."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(2)
    optimiser.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [20_000, 40_000])
    content = {
        "model": state,
        "optimizer": optimiser.state_dict(),
        "scheduler": schedule.state_dict(),
        "iteration": 60_000,
    }
    torch.save({**content, **more}, path)
    return path


def small_gaitbase(**more: Any) -> dict[str, Tensor]:
    options = {"channels": SMALL, "layers": (1, 1, 1, 1), "embedding": 3, **more}
    return goldens.weights(opengait_by_hand.gaitbase_shapes(**options))


def small_deepgaitv2(mode: str, **more: Any) -> dict[str, Tensor]:
    options = {"channels": SMALL, "layers": (1, 2, 1, 1), "embedding": 3, **more}
    return goldens.weights(opengait_by_hand.deepgaitv2_shapes(mode, **options))


def convert_and_load(path: Path, architecture: str, **options: Any) -> GaitNetwork:
    convert(path, path.parent / "ours", architecture, **options)
    return checkpoint.load(path.parent / "ours")[0]


@pytest.fixture(scope="module", params=goldens.NETWORKS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A golden's name, and for each rule the network that went through a file of each kind."""
    name: str = request.param
    goldens.skip_without_goldens()
    networks = {}
    for rule in ("fan", "flat"):
        folder = tmp_path_factory.mktemp(f"{name}-{rule}")
        state = goldens.weights(goldens.shapes(name), rule)
        path = save_as_opengait(folder / "model.pt", state)
        networks[rule] = convert_and_load(path, goldens.NETWORKS[name])
    return name, networks


@pytest.mark.slow
@pytest.mark.parametrize("case", goldens.CASES)
def test_an_imported_network_equals_the_golden(golden: Any, case: str) -> None:
    name, networks = golden
    chosen, frames = goldens.CASES[case]
    silhouettes = torch.from_numpy(goldens.silhouettes()[chosen, :frames]).float() / 255
    # the flat rule is a second witness, and enough of one on short walks
    for rule in ("fan", "flat") if frames < 10 else ("fan",):
        with torch.inference_mode():
            output = networks[rule](silhouettes)
        for what in ("embeddings", "logits")[: 1 if networks[rule].identities == 0 else 2]:
            wanted = goldens.expected(name, f"{rule}/{case}/{what}")
            assert goldens.relative_error(getattr(output, what), wanted) <= goldens.TOLERANCE


@pytest.mark.slow
def test_sequences_laid_end_to_end_equal_the_golden_or_each_walk_alone(golden: Any) -> None:
    """Of a temporal network the golden is the packed form, in which walks read each other's frames.

    Ours don't: they must differ from it, and equal each walk on its own.
    """
    name, networks = golden
    walks = [
        torch.from_numpy(walk[:length]).float() / 255
        for walk, length in zip(goldens.silhouettes(), goldens.RAGGED, strict=True)
    ]
    network = networks["fan"]
    with torch.inference_mode():
        together = network(torch.cat(walks), goldens.RAGGED)
        alone = torch.cat([network(walk[None]).embeddings for walk in walks])
    packed = goldens.relative_error(
        together.embeddings, goldens.expected(name, "fan/ragged/embeddings")
    )
    assert goldens.relative_error(together.embeddings, alone.numpy()) <= goldens.TOLERANCE
    if network.is_temporal:
        assert packed > 0.01
    else:
        assert packed <= goldens.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in goldens.NETWORKS if "gaitset" not in name])
def test_the_networks_by_hand_have_the_goldens_keys_and_outputs(name: str) -> None:
    config = goldens.description(name)["model_cfg"]
    identities = goldens.description(name)["class_num_used"]
    if "backbone_cfg" in config:
        backbone = config["backbone_cfg"]
        shapes = opengait_by_hand.gaitbase_shapes(
            backbone["channels"], backbone["layers"], embedding=256, identities=identities
        )
    else:
        backbone = config["Backbone"]
        shapes = opengait_by_hand.deepgaitv2_shapes(
            backbone["mode"],
            backbone["channels"],
            backbone["layers"],
            embedding=256,
            identities=identities,
        )
    assert shapes == goldens.shapes(name)
    walk = torch.from_numpy(goldens.silhouettes()[1, :2]).float() / 255
    with torch.inference_mode():
        embeddings, _, logits = opengait_by_hand.forward(goldens.weights(shapes), walk)
    for found, what in ((embeddings, "embeddings"), (logits, "logits")):
        wanted = goldens.expected(name, f"fan/t2/{what}")[0]
        assert goldens.relative_error(found, wanted) <= goldens.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("source", ["embedding", "neck"])
@pytest.mark.parametrize(
    ("architecture", "state"),
    [
        ("gaitbase", lambda: small_gaitbase(layers=(2, 1, 3, 1))),
        ("gaitbase", lambda: small_gaitbase(channels=(4, 4, 4, 4), parts=8, identities=1)),
        ("DeepGaitV2-2D", lambda: small_deepgaitv2("2d", layers=(1, 4, 4, 1))),
        ("deepgaitv2_p3d", lambda: small_deepgaitv2("p3d", layers=(2, 1, 3, 2))),
        ("deepgaitv2", lambda: small_deepgaitv2("p3d", channels=(4, 4, 6, 6), parts=4)),
        ("deepgaitv2-3d", lambda: small_deepgaitv2("3d", layers=(1, 4, 4, 1))),
        ("deepgaitv2", lambda: small_deepgaitv2("3d", channels=(4, 4, 6, 6), embedding=12)),
    ],
)
def test_any_widths_depths_and_modes_are_read_from_the_shapes(
    tmp_path: Path, architecture: str, state: Callable[[], dict[str, Tensor]], source: str
) -> None:
    weights = state()
    path = save_as_opengait(tmp_path / "model.pt", weights)
    network = convert_and_load(path, architecture, embedding_source=source)
    walk = torch.rand(5, 64, 44, generator=torch.Generator().manual_seed(1))
    embeddings, units, logits = opengait_by_hand.forward(weights, walk)
    with torch.inference_mode():
        output = network(walk[None])
        compared = network.matching(output.embeddings)
    wanted = embeddings if source == "embedding" else units
    assert goldens.relative_error(output.embeddings[0], embeddings.numpy()) <= goldens.TOLERANCE
    assert goldens.relative_error(output.logits[0], logits.numpy()) <= goldens.TOLERANCE
    assert goldens.relative_error(compared[0].T, wanted.numpy()) <= goldens.TOLERANCE


def test_other_strides_are_taken_on_request_and_contradictions_refused(tmp_path: Path) -> None:
    state = small_gaitbase(strides=(1, 2, 1, 1), channels=(4, 4, 4, 4))
    path = save_as_opengait(tmp_path / "model.pt", state)
    network = convert_and_load(path, "gaitbase", strides=(1, 2, 1, 1))
    walk = torch.rand(3, 64, 44, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = network(walk[None]).embeddings[0]
    wanted, _, _ = opengait_by_hand.forward(state, walk, strides=(1, 2, 1, 1))
    assert goldens.relative_error(found, wanted.numpy()) <= goldens.TOLERANCE
    with pytest.raises(OpenGaitError, match=r"layer3\.0\.downsample.* is missing"):
        import_opengait(path, "gaitbase")
    with pytest.raises(OpenGaitError, match="strides"):
        import_opengait(path, "gaitbase", strides=(1, 7, 2, 1))


def test_the_prefix_of_distributed_training_is_taken_off(tmp_path: Path) -> None:
    state = small_gaitbase()
    prefixed = {f"module.{key}": tensor for key, tensor in state.items()}
    network, _ = import_opengait(save_as_opengait(tmp_path / "model.pt", prefixed), "gaitbase")
    torch.testing.assert_close(network.head.projection.weight.data, state["FCs.fc_bin"])
    both = {**prefixed, "FCs.fc_bin": state["FCs.fc_bin"]}
    with pytest.raises(OpenGaitError, match="with and without"):
        import_opengait(save_as_opengait(tmp_path / "both.pt", both), "gaitbase")


def test_a_bare_state_dict_is_read_too(tmp_path: Path) -> None:
    torch.save(small_gaitbase(), tmp_path / "model.pt")
    network, card = import_opengait(tmp_path / "model.pt", "GaitBase")
    assert (network.identities, card.name, card.metric) == (5, "model", "euclidean")


def test_teachers_saved_with_a_student_are_left_out_and_the_card_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teachers = {f"teacher_models.0.{key}": t for key, t in small_deepgaitv2("p3d").items()}
    path = save_as_opengait(tmp_path / "model.pt", {**small_gaitbase(), **teachers})
    with caplog.at_level(logging.WARNING):
        card = convert(path, tmp_path / "ours", "gaitbase")
    assert f"{len(teachers)} tensors of teachers" in card.notes
    assert f"{len(teachers)} tensors of teachers" in caplog.text
    assert not any("teacher" in key for key in checkpoint.load(tmp_path / "ours")[0].state_dict())


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name != key}


VARIANCE = "BNNecks.bn1d.running_var"
NORM = "BNNecks.bn1d.running_mean"
COUNTER = "BNNecks.bn1d.num_batches_tracked"
FIRST = "Backbone.forward_block.layer1.0.conv1.weight"
KERNEL = "Backbone.forward_block.layer2.0.conv2.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: without(s, NORM), f"'{NORM}' is missing"),
        (lambda s: without(s, "FCs.fc_bin"), "'FCs.fc_bin' is missing"),
        (lambda s: without(s, KERNEL), f"'{KERNEL}' is missing"),
        (lambda s: {**s, "aux.weight": torch.ones(2)}, "'aux.weight' does not belong"),
        (lambda s: {**s, NORM: torch.ones(7)}, rf"'{NORM}' has shape \[7\], not \[48\]"),
        (lambda s: {**s, KERNEL: s[KERNEL].unsqueeze(2)}, f"'{KERNEL}' has shape"),
        (lambda s: {**s, KERNEL: s[KERNEL].long()}, f"'{KERNEL}' is torch.int64"),
        (lambda s: {**s, "FCs.fc_bin": torch.ones(16)}, "'FCs.fc_bin' has shape"),
        (lambda s: {**s, "FCs.fc_bin": torch.ones(65, 10, 3)}, r"parts: .* 64$"),
        (lambda s: small_gaitbase(parts=5), "16 rows .* can't be divided into 5 equal parts"),
        (lambda s: {**s, VARIANCE: -s[VARIANCE]}, f"'{VARIANCE}' has negative variances"),
        (lambda s: {**s, FIRST: torch.tensor(1.0)}, "stage 1 have no shape"),
        (lambda s: {**s, f"{FIRST[:-14]}{'9' * 5000}.conv1.weight": s[FIRST]}, "not belong"),
        (lambda s: {**s, KERNEL: s[KERNEL].to("meta")}, f"not plain named tensors: {KERNEL}"),
        (lambda s: {**s, COUNTER: torch.empty((), dtype=torch.bits8)}, "is torch.bits8, not"),
        (lambda s: {**s, NORM: "text"}, f"not plain named tensors: {NORM}"),
        (
            lambda s: {**s, "BNNecks.fc_bin": torch.ones(1).expand(16, 3, 10**6)},
            "not plain named tensors: BNNecks.fc_bin",
        ),
        (lambda s: small_deepgaitv2("p3d"), "not a gaitbase: stage 1"),
        (lambda s: {}, "holds no weights"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Any]],
    complaint: str,
) -> None:
    path = save_as_opengait(tmp_path / "model.pt", change(small_gaitbase()))
    with pytest.raises(OpenGaitError, match=complaint):
        import_opengait(path, "gaitbase")


@pytest.mark.parametrize("held", MODES)
@pytest.mark.parametrize("asked", MODES)
def test_a_mode_that_was_insisted_on_must_be_the_files(
    tmp_path: Path, held: str, asked: str
) -> None:
    path = save_as_opengait(tmp_path / "model.pt", small_deepgaitv2(held))
    if held == asked:
        network, _ = import_opengait(path, f"deepgaitv2-{asked}")
        assert network.config.model_dump()["mode"] == held
    else:
        with pytest.raises(OpenGaitError, match=f"holds a deepgaitv2-{held}, not {asked}"):
            import_opengait(path, f"deepgaitv2-{asked}")


@pytest.mark.parametrize(
    "name", ["resnet", "gaitset-2d", "gaitbase-2d", "deepgaitv2-4d", "", "deepgaitv2-2d-"]
)
def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    known = ", ".join(ARCHITECTURES)
    with pytest.raises(OpenGaitError, match=f"known: {known}, deepgaitv2-2d"):
        import_opengait(tmp_path / "any.pt", name)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("owned"),))


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"not a checkpoint", b"hello", b"PK\x03\x04" + bytes(64)),
        pickle.dumps({"model": Evil()}),
    ],
    ids=["empty", "text", "other text", "broken zip", "code"],
)
def test_a_file_that_is_no_checkpoint_is_refused_and_runs_nothing(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.pt").write_bytes(content)
    with pytest.raises(OpenGaitError, match="can be read safely") as refusal:
        import_opengait(Path("model.pt"), "gaitbase")
    assert "Re-running" not in str(refusal.value)
    assert re.search(r": [a-zA-Z ]{10,}[^\n]*$", str(refusal.value))
    torch.save({"model": Evil()}, "evil.pt")
    with pytest.raises(OpenGaitError, match=r"it needs \S+, which is no tensor$"):
        import_opengait(Path("evil.pt"), "gaitbase")
    assert not Path("owned").exists()


def test_a_file_that_was_cut_short_says_so_wherever_the_cut_is(tmp_path: Path) -> None:
    path = save_as_opengait(tmp_path / "model.pt", small_gaitbase())
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(OpenGaitError, match="can be read safely") as refusal:
            import_opengait(path, "gaitbase")
        assert "Errno" not in str(refusal.value)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        import_opengait(tmp_path / "none.pt", "gaitbase")


def test_weights_that_are_not_finite_are_not_converted(tmp_path: Path) -> None:
    state = small_gaitbase()
    state["FCs.fc_bin"][0, 0, 0] = np.nan
    path = save_as_opengait(tmp_path / "model.pt", state)
    with pytest.raises(OpenGaitError, match=r"'FCs\.fc_bin' has numbers that are not finite"):
        convert(path, tmp_path / "ours", "gaitbase")
    assert not (tmp_path / "ours").exists()


def test_what_is_in_a_folder_already_is_not_replaced(tmp_path: Path) -> None:
    path = save_as_opengait(tmp_path / "model.pt", small_gaitbase())
    (tmp_path / "ours").mkdir()
    before = convert(path, tmp_path / "ours", "gaitbase", name="first")
    with pytest.raises(OpenGaitError, match="not empty"):
        convert(path, tmp_path / "ours", "gaitbase", name="second")
    assert read_card(tmp_path / "ours") == before

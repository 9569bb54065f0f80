from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import checkpoint
from models.card import POSE_READERS, CheckpointError, InputSize
from models.checkpoint import card_of
from models.encoder import Encoder, compiled, eager, encoder
from models.encoder.compiled import CompiledBackbone
from models.encoder.eager import EagerBackbone
from models.encoder.encoder import Backbone
from models.networks.network import GaitNetwork
from models.silhouettes import cut
from tests.models.networks.test_registry import NETWORKS, RESIDUAL, WINDOWED, small

Walks = list[NDArray[np.uint8]]
LENGTHS = (7, 30, 1, 12, 45, 7)


def some_walks(width: int = 44, *, of: str = "gaitbase") -> Walks:
    """What a network of the name takes."""
    rng = np.random.default_rng(0)
    frame = (3, 64, width) if of in POSE_READERS else (64, width)
    return [rng.integers(0, 256, (length, *frame), np.uint8) for length in LENGTHS]


def prepare(
    name: str, config: dict[str, Any], *, mirror: bool = False, **options: Any
) -> tuple[GaitNetwork, Encoder]:
    """A network, and an encoder of the same weights."""
    network, twin = small(name, config), small(name, config)
    card = card_of(twin, name="small", metric="cosine", mirror=mirror)
    return network, Encoder(twin, card, device="cpu", **options)


def plainly(network: GaitNetwork, walks: Walks) -> NDArray[np.float32]:
    with torch.inference_mode():
        found = [
            network.matching(network(torch.from_numpy(walk)[None].float() / 255).embeddings)
            for walk in walks
        ]
    return torch.cat(found).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), NETWORKS + WINDOWED)
def test_float32_embeddings_equal_the_plain_networks(name: str, config: dict[str, Any]) -> None:
    network, fast = prepare(name, config, precision="float32")
    found, wanted = fast.encode(some_walks(of=name)), plainly(network, some_walks(of=name))
    assert found.dtype == np.float32
    assert found.shape == (6, network.parts, 5)
    assert found.flags.c_contiguous
    assert np.linalg.norm(found - wanted) <= 5e-6 * np.linalg.norm(wanted)


def test_float32_is_not_rounded_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch leaves it
    prepare(*NETWORKS[0], precision="float32")
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_bfloat16_embeddings_point_the_same_way(name: str, config: dict[str, Any]) -> None:
    network, fast = prepare(name, config, precision="bfloat16")
    assert fast.precision == "bfloat16"
    found, wanted = fast.encode(some_walks(of=name)), plainly(network, some_walks(of=name))
    lengths = np.linalg.norm(found, axis=2) * np.linalg.norm(wanted, axis=2)
    assert ((found * wanted).sum(2) / lengths).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("frames_per_call", [1, 7, 1000])
@pytest.mark.parametrize(("name", "config"), NETWORKS + WINDOWED)
def test_how_many_frames_go_in_at_once_changes_nothing(
    name: str, config: dict[str, Any], frames_per_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "FRAMES_PER_CALL", frames_per_call)
    network, fast = prepare(name, config, precision="float32")
    np.testing.assert_allclose(
        fast.encode(some_walks(of=name)),
        plainly(network, some_walks(of=name)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_wide_silhouettes_are_cut_as_the_field_cuts_them() -> None:
    _, fast = prepare("gaitbase", {}, precision="float32")
    wide = some_walks(64)
    assert np.array_equal(fast.encode(wide), fast.encode([cut(walk) for walk in wide]))


@pytest.mark.slow
def test_a_mirroring_checkpoint_embeds_a_walk_and_its_mirror_image_alike() -> None:
    network, fast = prepare("gaitbase", {}, mirror=True, precision="float32")
    walks = some_walks()
    mirrored = [walk[:, :, ::-1] for walk in walks]
    np.testing.assert_allclose(fast.encode(walks), fast.encode(mirrored), rtol=1e-4, atol=1e-6)
    both = (plainly(network, walks) + plainly(network, [np.copy(w) for w in mirrored])) / 2
    np.testing.assert_allclose(fast.encode(walks), both, rtol=1e-4, atol=1e-5)


def test_a_necked_checkpoint_gives_unit_parts() -> None:
    network, fast = prepare("gaitbase", {"embedding_source": "neck"}, precision="float32")
    found = fast.encode(some_walks())
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, rtol=1e-5)
    np.testing.assert_allclose(found, plainly(network, some_walks()), atol=1e-5)


def backbone_on_torch(network: GaitNetwork, **options: Any) -> EagerBackbone:
    """What GPUs run, on the CPU."""
    return EagerBackbone(network.backbone, torch.device("cpu"), **{"bfloat16": False, **options})


def backbone_on_openvino(network: GaitNetwork, threads: int = 1) -> CompiledBackbone:
    return CompiledBackbone(network.backbone, InputSize(), bfloat16=False, threads=threads)


@pytest.mark.parametrize("frames_per_call", [7, 1000])
@pytest.mark.parametrize(
    ("ready", "name", "config"),
    [
        *((backbone_on_torch, *kind) for kind in NETWORKS),
        *((backbone_on_openvino, *kind) for kind in RESIDUAL),
    ],
)
def test_a_backbone_gives_each_walks_maximum_over_time(
    name: str,
    config: dict[str, Any],
    ready: Callable[[GaitNetwork], Backbone],
    frames_per_call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "FRAMES_PER_CALL", frames_per_call)
    monkeypatch.setattr(eager, "FRAMES_PER_CALL_ON_CPU", frames_per_call)
    network = small(name, config)
    frames = torch.from_numpy(np.concatenate(some_walks(of=name)))
    with torch.inference_mode():
        found = ready(network)(frames, LENGTHS)
        for walk, own in zip(torch.split(frames, list(LENGTHS)), found, strict=True):
            wanted = network.backbone.over_clips(walk[None].float() / 255)[0]
            torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def test_several_threads_give_what_one_gives() -> None:
    network = small("gaitbase", {})
    frames = torch.from_numpy(np.concatenate(some_walks()))
    one, three = (backbone_on_openvino(network, threads)(frames, LENGTHS) for threads in (1, 3))
    torch.testing.assert_close(three, one, rtol=1e-5, atol=1e-6)


def test_on_a_cpu_nothing_is_rounded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "computes_bfloat16", lambda device: True)
    _, fast = prepare("gaitbase", {})
    assert fast.precision == "float32"


@pytest.mark.parametrize(
    ("errors", "precision", "trials"),
    [
        ([0.0], "bfloat16", [False]),
        ([0.01, 0.0], "bfloat16", [False, True]),
        ([0.01, 0.01], "float32", [False, True]),
    ],
)
def test_a_gpu_takes_bfloat16_where_it_is_harmless_if_need_be_but_for_the_last_stage(
    errors: list[float], precision: str, trials: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, tried = iter(errors), []

    def ready(self: Encoder, *, bfloat16: bool, keeps_last_stage: bool = False) -> Backbone:
        if bfloat16:
            tried.append(keeps_last_stage)
        return EagerBackbone(
            self._network.backbone,
            self.device,
            bfloat16=bfloat16,
            keeps_last_stage=keeps_last_stage,
        )

    monkeypatch.setattr(Encoder, "_ready", ready)
    monkeypatch.setattr(Encoder, "_rounds_unasked", lambda self: True)
    monkeypatch.setattr(Encoder, "_error", lambda self, rounded: next(measured))
    network, fast = prepare("gaitbase", {})
    assert (fast.precision, tried) == (precision, trials)
    tolerance = 5e-6 if precision == "float32" else 0.05
    found, wanted = fast.encode(some_walks()), plainly(network, some_walks())
    assert np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_a_last_stage_that_stays_exact_loses_less(name: str, config: dict[str, Any]) -> None:
    _, fast = prepare(name, config)
    rounded, spared = (
        backbone_on_torch(fast._network, bfloat16=True, keeps_last_stage=keeps)
        for keeps in (False, True)
    )
    types = {parameter.dtype for parameter in spared._backbone.last_stage.parameters()}
    assert types == {torch.float32}
    assert next(spared._backbone.parameters()).dtype == torch.bfloat16
    assert 0 < fast._error(spared) < 0.01
    assert 0 < fast._error(rounded) < 0.01
    assert abs(fast._error(fast._backbone)) < 1e-6


def test_threads_get_what_one_caller_gets() -> None:
    _, fast = prepare("gaitbase", {}, precision="float32")
    walks = some_walks()
    wanted = [fast.encode([walk]) for walk in walks]
    found: dict[int, NDArray[np.float32]] = {}

    def call(position: int) -> None:
        found[position] = fast.encode([walks[position]])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(walks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for position, embedding in enumerate(wanted):
        # to rounding: on a busy machine torch may share the sums out in another way
        np.testing.assert_allclose(found[position], embedding, rtol=1e-4, atol=1e-7)


def test_no_walks_have_no_embeddings() -> None:
    _, fast = prepare("gaitbase", {}, precision="float32")
    assert fast.encode([]).shape == (0, 16, 5)


@pytest.mark.parametrize(
    ("walk", "complaint"),
    [
        (np.zeros((3, 64, 44), np.float32), "must be uint8"),
        (np.zeros((64, 44), np.uint8), "must be uint8"),
        (np.zeros((0, 64, 44), np.uint8), "a frame at least"),
        (np.zeros((3, 44, 64), np.uint8), "44 x 64, the network wants 64 x 44"),
        (np.zeros((3, 64, 43), np.uint8), "64 x 43"),
        (np.zeros((3, 64, 45), np.uint8), "64 x 45"),
    ],
)
def test_a_walk_of_another_form_is_refused_by_its_place(walk: Any, complaint: str) -> None:
    _, fast = prepare("gaitbase", {}, precision="float32")
    with pytest.raises(ValueError, match=f"walk 1 .*{complaint}"):
        fast.encode([np.zeros((3, 64, 44), np.uint8), walk])


@pytest.mark.slow
def test_an_encoder_is_opened_from_a_checkpoint(tmp_path: Path) -> None:
    network = small("gaitbase", {})
    card = card_of(network, name="small", metric="cosine")
    card = checkpoint.save(tmp_path / "a", network, card)
    opened = Encoder.open(tmp_path / "a", precision="float32")
    assert (opened.card, opened.digest) == (card, card.digest)
    np.testing.assert_allclose(
        opened.encode(some_walks()), plainly(network, some_walks()), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(CheckpointError):
        Encoder.open(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"precision": "int3"}, "unknown precision 'int3'"), ({"device": "abacus"}, "'abacus'")],
)
def test_devices_and_precisions_that_are_not_there_are_refused(
    options: dict[str, Any], complaint: str
) -> None:
    network = small("gaitbase", {})
    with pytest.raises(ValueError, match=complaint):
        Encoder(network, card_of(network, name="small", metric="cosine"), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="'cuda' is not available"):
        prepare_on_cuda()


def prepare_on_cuda() -> Encoder:
    network = small("gaitbase", {})
    return Encoder(network, card_of(network, name="small", metric="cosine"), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_a_gpu_gives_the_same_embeddings(name: str, config: dict[str, Any]) -> None:
    network, _ = prepare(name, config)
    twin = small(name, config)
    fast = Encoder(twin, card_of(twin, name="small", metric="cosine"), device="cuda")
    found, wanted = fast.encode(some_walks(of=name)), plainly(network, some_walks(of=name))
    assert np.linalg.norm(found - wanted) <= 0.02 * np.linalg.norm(wanted)

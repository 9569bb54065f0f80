from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from models import checkpoint
from models.card import CheckpointMismatch, InputSize
from models.checkpoint import card_of
from models.encoder import Encoder
from models.encoder.compiled import CompiledBackbone, converted
from models.networks.cost import cost
from models.networks.network import GaitNetwork
from models.networks.quantised import QuantisedConv, QuantisedReLU
from tests.models.networks.test_registry import RESIDUAL, WINDOWED, small, walks


def filled(name: str, config: dict[str, Any], **more: Any) -> GaitNetwork:
    """A quantised network of random whole numbers."""
    network = small(name, config, quantised="int8", **more)
    random = torch.Generator().manual_seed(0)
    for module in network.backbone.modules():
        if isinstance(module, QuantisedConv):
            shape = module.weight.shape
            module.weight = torch.randint(-127, 128, shape, generator=random).to(torch.int8)
            module.scale.fill_(1 / 127 / module.weight[0].numel() ** 0.5)
            module.bias = torch.rand(module.bias.shape, generator=random)
        elif isinstance(module, QuantisedReLU) and module is not network.backbone.entry:
            module.scale.fill_(3 / 255)
    return network


@pytest.mark.parametrize(("name", "config"), RESIDUAL)
def test_what_convolutions_read_is_whole_numbers_of_eight_bits(
    name: str, config: dict[str, Any]
) -> None:
    network = filled(name, config)
    seen = []

    def look(module: QuantisedReLU, _: Any, maps: torch.Tensor) -> None:
        whole = maps / module.scale
        seen.append((whole - whole.round()).abs().max().item())
        assert 0 <= whole.min() <= whole.max() <= 255.001

    for module in network.modules():
        if isinstance(module, QuantisedReLU):
            module.register_forward_hook(look)
    network(walks(1, 3))
    convolutions = sum(isinstance(module, QuantisedConv) for module in network.modules())
    assert not any(isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d) for m in network.modules())
    assert convolutions > len(seen) > 8  # a block's shortcut reads what its first convolution does
    assert max(seen) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), [*RESIDUAL, *WINDOWED[:2]])
def test_openvino_gives_what_torch_gives(name: str, config: dict[str, Any]) -> None:
    network, twin = filled(name, config), filled(name, config)
    fast = Encoder(twin, card_of(twin, name="small", metric="cosine"), device="cpu")
    assert fast.precision == "int8"
    given = [walks(1, length, length)[0].mul(255).byte() for length in (9, 1, 30)]
    with torch.inference_mode():
        wanted = [network.matching(network(w[None].float() / 255).embeddings) for w in given]
    found = fast.encode([walk.numpy() for walk in given])
    torch.testing.assert_close(torch.from_numpy(found), torch.cat(wanted), rtol=0.02, atol=0.02)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another processor's kernels")
@pytest.mark.parametrize("name", ["gaitbase", "deepgaitv2"])
def test_openvino_computes_with_the_whole_numbers(name: str) -> None:
    network = filled(name, {}, channels=(16, 16, 16, 16))
    model, _owner = converted(network.backbone, InputSize())
    layers = openvino.Core().compile_model(model, "CPU").get_runtime_model().get_ordered_ops()
    about = [layer.get_rt_info() for layer in layers]
    kinds = [
        info["runtimePrecision"].astype(str)
        for info in about
        if info["layerType"].astype(str) == "Convolution"
    ]
    assert len(kinds) >= 11
    assert set(kinds) <= {"u8", "i8"}


def test_a_quantised_network_survives_its_checkpoint(tmp_path: Path) -> None:
    network = filled("gaitbase", {})
    card = card_of(network, name="small", metric="cosine")
    checkpoint.save(tmp_path / "a", network, card, half=True)
    again, card = checkpoint.load(tmp_path / "a")
    assert card.config["quantised"] == "int8"
    for key, tensor in network.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[key], tensor), key
    assert again.state_dict()["backbone.stem.conv.weight"].dtype == torch.int8


def test_a_card_cannot_call_a_float_network_quantised(tmp_path: Path) -> None:
    quantised, plain = filled("gaitbase", {}), small("gaitbase", {})
    with pytest.raises(CheckpointMismatch, match="config"):
        checkpoint.save(tmp_path, plain, card_of(quantised, name="small", metric="cosine"))


def test_a_quantised_network_is_not_rounded_further() -> None:
    network = filled("gaitbase", {})
    with pytest.raises(ValueError, match="int8 is not computed in bfloat16"):
        Encoder(network, card_of(network, name="s", metric="cosine"), precision="bfloat16")


def test_a_quantised_network_costs_what_the_float_one_does() -> None:
    plain, quantised = small("gaitbase", {}), filled("gaitbase", {})
    assert cost(quantised) == cost(plain)


def test_two_threads_do_not_change_a_bit() -> None:
    network = filled("gaitbase", {})
    frames = (walks(1, 40)[0] * 255).byte()
    one, two = (
        CompiledBackbone(network.backbone, InputSize(), bfloat16=False, threads=threads)
        for threads in (1, 2)
    )
    np.testing.assert_allclose(one(frames, [31, 9]), two(frames, [31, 9]), rtol=1e-5, atol=1e-6)

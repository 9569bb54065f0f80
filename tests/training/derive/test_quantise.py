from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import checkpoint
from models.card import CardThreshold, read_card
from models.checkpoint import card_of
from models.networks.network import GaitNetwork
from models.networks.quantised import QuantisedConv, QuantisedReLU
from tests.models.networks.test_registry import RESIDUAL
from tests.models.networks.test_registry import small as bare
from tests.training.walkers import make_pack
from training.cli.commands import app
from training.derive.quantise import (
    _patches,
    _rounded_in_turn,
    calibration_clips,
    quantise,
    quantised,
)
from training.recipe import RecipeError


def used(name: str, config: dict[str, Any], **more: Any) -> GaitNetwork:
    """A network whose normalisations have seen maps, so that folding them changes something."""
    network = bare(name, {**config, "channels": (8, 8, 16, 16)}, **more)
    random = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            shape = module.running_mean.shape  # type: ignore[union-attr]
            module.running_mean = torch.randn(shape, generator=random) / 5
            module.running_var = torch.rand(shape, generator=random) + 0.5
    return network


def part_cosines(one: GaitNetwork, other: GaitNetwork, walks: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        ours, theirs = (n.matching(n(walks).embeddings) for n in (one, other))
    return torch.cosine_similarity(ours, theirs, dim=2)


def to_the_nearest(network: GaitNetwork, whole: GaitNetwork) -> GaitNetwork:
    """`whole` with the kernels and biases of `network`, rounded one by one."""
    from models.networks.blocks import ConvNorm, fold_batch_norm

    fold_batch_norm(network)
    for name, module in network.backbone.named_modules():
        if isinstance(module, ConvNorm):
            conv: Any = whole.backbone.get_submodule(name).conv
            assert isinstance(conv, QuantisedConv)
            kernel = module.conv.weight.detach()
            scale = kernel.abs().flatten(1).amax(1) / 127
            steps = kernel / scale.view(-1, *[1] * (kernel.ndim - 1))
            conv.load_state_dict(
                {"weight": steps.round(), "scale": scale, "bias": module.conv.bias.detach()}
            )
    return whole


def test_a_network_of_other_layers_is_refused(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "walkers.pack")
    with pytest.raises(RecipeError, match="GaitBase and DeepGaitV2 can be quantised, not gaitset"):
        quantise(used("gaitset", {}), pack.path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), RESIDUAL)
def test_a_quantised_network_embeds_walks_it_has_not_seen_like_the_exact_one(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    pack = make_pack(tmp_path / "walkers.pack", subjects=12, test_subjects=3)
    clips = calibration_clips(pack.subset(pack.partition.train))  # type: ignore[union-attr]
    others = calibration_clips(pack.subset(pack.partition.test))  # type: ignore[union-attr]
    network = used(name, config)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    whole = quantised(network, clips)
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    alike = part_cosines(network, whole, others)
    assert alike.mean() > 0.999
    nearest = part_cosines(network, to_the_nearest(used(name, config), whole), others)
    assert (1 - alike).mean() < 0.7 * (1 - nearest).mean()


def test_every_range_is_chosen(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "walkers.pack")
    whole = quantised(used("gaitbase", {}), calibration_clips(pack))
    for module in whole.backbone.modules():
        if isinstance(module, QuantisedConv):
            assert module.weight.abs().max() > 50
            assert (module.scale < 0.1).all()
        elif isinstance(module, QuantisedReLU):
            assert module.scale < 0.5
    entry = whole.backbone.entry
    assert isinstance(entry, QuantisedReLU)
    assert entry.scale == pytest.approx(1 / 255)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(3, 5, 3, 2, 1, bias=False), (2, 3, 9, 7)),
        (nn.Conv2d(3, 5, (3, 1), padding=(1, 0), bias=False), (2, 3, 4, 6)),
        (nn.Conv2d(3, 5, 1, bias=False), (2, 3, 4, 6)),
        (nn.Conv3d(3, 5, 3, (1, 2, 2), 1, bias=False), (2, 3, 4, 8, 6)),
    ],
)
def test_a_convolution_is_its_kernel_times_what_it_reads_at_each_place(
    conv: Any, shape: tuple[int, ...]
) -> None:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = conv(maps).movedim(1, -1).flatten(0, -2)
    found = _patches(conv, maps) @ conv.weight.flatten(1).T
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_rounding_in_turn_loses_less_than_rounding_to_the_nearest() -> None:
    random = torch.Generator().manual_seed(0)
    mixed = torch.randn(40, 40, generator=random).double()
    read = torch.randn(500, 40, generator=random).double() @ mixed
    kernel = torch.randn(8, 40, generator=random).double() * 5
    variance = read.T @ read / len(read) + 0.01 * torch.eye(40).double()
    whole = _rounded_in_turn(kernel, variance)
    assert torch.equal(whole, whole.round())
    lost = [((kernel - found) @ read.T).square().mean() for found in (whole, kernel.round())]
    assert lost[0] < 0.5 * lost[1]
    assert _rounded_in_turn(kernel * 1000, variance).abs().max() == 127


def test_walks_too_short_to_quantise_with_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no walk for training has 6 frames"):
        calibration_clips(make_pack(tmp_path / "short.pack", frames=4))


def call(*arguments: object) -> tuple[int, dict[str, Any]]:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["export", *map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_quantising_by_command_makes_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "walkers.pack", subjects=4)
    network = used("gaitbase", {})
    point = CardThreshold(target_fpir=0.01, gallery_subjects=100, threshold=0.5)
    card = card_of(
        network, name="small", metric="cosine", threshold=0.5, thresholds=(point,), metrics={"a": 1}
    )
    source = checkpoint.save(tmp_path / "float", network, card)
    quantise = ("--quantise", "int8", "--dataset", pack.path)
    out = tmp_path / "whole"
    assert call(tmp_path / "float", "--out", out, *quantise, "--name", "small-int8")[0] == 0
    card = read_card(out)
    assert card.config["quantised"] == "int8"
    assert (card.threshold, card.thresholds, card.metrics) == (None, (), {})
    assert card.digest != source.digest == card.training["exported_from"]
    facts = card.training["quantised"]
    assert isinstance(facts, dict)
    assert facts["checkpoint"] == source.digest
    assert facts["dataset"] == {"name": "walkers.pack", "content_hash": pack.content_hash}
    agreement: Any = facts["part_cosine"]
    assert 0.99 < agreement["worst"] <= agreement["mean"] <= 1
    for wrong, reason in (
        ((out, *quantise), "quantised already"),
        ((tmp_path / "float", *quantise[:2]), "go together"),
        ((tmp_path / "float", *quantise, "--evaluation", out / "card.json"), "before it is"),
    ):
        status, (failed) = call(*wrong, "--out", tmp_path / "none")
        assert (status, (tmp_path / "none").exists()) == (2, False)
        assert reason in failed["reason"]
    # exported once more, as with an evaluation of it, it stays what it is
    assert call(out, "--out", tmp_path / "again")[0] == 0
    again, whole = (checkpoint.load(path)[0].state_dict() for path in (tmp_path / "again", out))
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())
    assert read_card(tmp_path / "again").training["quantised"] == facts

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from typer.testing import CliRunner

from models import checkpoint
from models.card import read_card
from models.checkpoint import card_of
from models.networks.network import GaitNetwork
from models.networks.registry import build
from tests.training.runs import TINY, run
from training.cli.commands import app
from training.derive.enlarge import Layers, grow, grown, widened
from training.process import provenance
from training.process.events import SilentReporter
from training.recipe import load

CHANNELS = (4, 6, 6, 8)
SMALL = {"channels": CHANNELS, "embedding_channels": 5, "parts": 4, "identities": 3}


def trained(architecture: str = "gaitbase", **config: object) -> GaitNetwork:
    """A network whose batch statistics and normalisations are not those it was born with."""
    torch.manual_seed(0)
    network = build(architecture, {**SMALL, **config})
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    with torch.no_grad():
        network.train()(walks())
    return network.eval()


def walks() -> torch.Tensor:
    return (torch.rand(3, 7, 64, 44, generator=torch.Generator().manual_seed(1)) > 0.5).float()


@pytest.mark.parametrize("mode", ["2d", "p3d"])
@pytest.mark.parametrize(
    "source", [{}, {"architecture": "deepgaitv2", "mode": "2d", "layers": [1, 2, 1, 1]}]
)
def test_a_grown_network_begins_as_the_one_it_grew_out_of(
    mode: Literal["2d", "p3d"], source: dict[str, Any]
) -> None:
    small = trained(**source)
    deep = grown(small, (1, 3, 2, 1), mode)
    assert deep.config.layers == (1, 3, 2, 1)
    assert not deep.training
    with torch.no_grad():
        before, after = small(walks()), deep(walks())
    torch.testing.assert_close(after.embeddings, before.embeddings)
    torch.testing.assert_close(after.logits, before.logits)


def test_a_grown_network_learns_in_every_block_from_the_first_step_or_the_second() -> None:
    deep = grown(trained(), (1, 2, 2, 1)).train()
    optimiser = torch.optim.SGD(deep.parameters(), lr=0.1)
    for _ in range(2):  # the weight of a normalisation moves first, then what lies behind it
        optimiser.zero_grad()
        deep(walks()).logits.square().sum().backward()
        optimiser.step()
    still = [
        name
        for name, weights in deep.backbone.named_parameters()
        if weights.grad is None or not bool(weights.grad.any())
    ]
    assert still == []
    deep.eval()
    with torch.no_grad():
        backwards = deep(walks().flip(1)).embeddings
        assert not torch.allclose(deep(walks()).embeddings, backwards), "time is still not read"


@pytest.mark.parametrize(
    ("source", "layers", "reason"),
    [
        ({"layers": [1, 2, 1, 1]}, (1, 1, 1, 1), "growing only adds"),
        ({"architecture": "deepgaitv2", "mode": "p3d"}, (1, 2, 2, 1), "reads time already"),
        ({"strides": [1, 2, 1, 1]}, (1, 2, 2, 1), "strides"),
        ({"quantised": "int8"}, (1, 2, 2, 1), "quantised"),
        ({"architecture": "gaitpart"}, (1, 2, 2, 1), "this one is another"),
    ],
)
def test_what_cannot_grow_is_refused(source: dict[str, Any], layers: Layers, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        grown(trained(**source), layers)


@pytest.mark.parametrize(
    ("command", "made", "step", "beyond"),
    [
        (("grow", "--layers", 1, 2, 2, 1), ("deepgaitv2", CHANNELS), {"grown": {}}, (0, 2, 2, 1)),
        (
            ("widen", "--times", 3),
            ("gaitbase", (12, 18, 18, 24)),
            {"widened": {"times": 3}},
            (5000,),
        ),
    ],
)
def test_a_command_writes_an_equal_checkpoint_that_keeps_identities_and_names_its_origin(
    tmp_path: Path,
    command: tuple[Any, ...],
    made: tuple[str, tuple[int, ...]],
    step: dict[str, dict[str, Any]],
    beyond: tuple[int, ...],
) -> None:
    small = trained()
    card = card_of(small, name="s", metric="cosine", training={"identity_hash": "abc"})
    origin = checkpoint.save(tmp_path / "small", small, card)
    name, option, *values = command

    def call(out: str, *values: int) -> int:
        places = (tmp_path / "small", "--out", tmp_path / out, option, *values)
        return CliRunner().invoke(app, [name, *map(str, places)]).exit_code

    assert call("large", *values) == 0
    large, card = checkpoint.load(tmp_path / "large")
    assert (card.architecture, large.config.channels, card.identities) == (*made, 3)
    assert card.training["identity_hash"] == "abc"
    facts = {"checkpoint": origin.digest, "commit": provenance.commit()}
    assert card.training.items() >= {key: more | facts for key, more in step.items()}.items()
    with torch.no_grad():
        torch.testing.assert_close(
            large(walks()).logits, small(walks()).logits, rtol=1e-4, atol=1e-4
        )
    assert call("beyond", *beyond) == 2


@pytest.mark.slow
def test_a_student_learns_from_the_teacher_that_grew_out_of_a_small_network(
    pack: Path, tmp_path: Path
) -> None:
    """The walk-through of docs/training.md."""
    _, *rest = TINY
    run(load("student-cpu", settings=TINY, dataset=pack), tmp_path / "small")
    small = tmp_path / "small/checkpoint"
    grow(small, tmp_path / "grown", SilentReporter(), layers=(1, 4, 4, 1), mode="p3d")
    teacher = load("teacher-cpu", settings=rest, dataset=pack, student=tmp_path / "grown")
    run(teacher, tmp_path / "teacher")
    taught = [tmp_path / "teacher/checkpoint"]
    student = load(
        "student-distilled-cpu",
        settings=rest,
        dataset=pack,
        teachers=taught,
        student=tmp_path / "small/checkpoint",
    )
    run(student, tmp_path / "student")
    learnt: Any = read_card(tmp_path / "student/checkpoint").training
    assert learnt["teachers"] == [
        {
            "name": "tiny",
            "digest": read_card(taught[0]).digest,
            "prototypes": False,
        }
    ]
    assert set(learnt["losses"]) >= {"logit", "boundary", "ranking"}


SOURCES = [
    {},
    {"architecture": "deepgaitv2", "mode": "2d", "layers": [1, 2, 1, 1]},
    {"architecture": "deepgaitv2", "mode": "p3d", "layers": [1, 2, 1, 1]},
    {"architecture": "deepgaitv2", "mode": "3d"},
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_a_widened_network_begins_as_the_one_it_was_made_of(
    source: dict[str, Any], times: int, training: bool
) -> None:
    small = trained(**source).train(training)
    wide = widened(small, times)
    assert wide.config.channels == tuple(times * width for width in small.config.channels)
    assert wide.config.embedding_channels == small.config.embedding_channels
    assert wide.training is training
    with torch.no_grad():
        before, after = small(walks()), wide(walks())
    torch.testing.assert_close(after.embeddings, before.embeddings, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", SOURCES)
def test_copies_of_a_channel_learn_different_things(source: dict[str, Any]) -> None:
    wide = widened(trained(**source), 2).train()
    optimiser = torch.optim.SGD(wide.parameters(), lr=0.1)
    wide(walks()).logits.square().sum().backward()
    optimiser.step()
    for name, weights in wide.backbone.named_parameters():
        first, second = weights.detach().chunk(2)
        assert not torch.allclose(first, second, rtol=1e-4), f"{name} are copies still"


@pytest.mark.parametrize(
    ("command", "option", "bound"),
    [
        (("widen", "--times", "1000"), "--times", "channels.0: Input should be less than"),
        (("grow", "--layers", "1", "4", "4", "99"), "--layers", "layers.3: Input should be less"),
    ],
)
def test_what_is_too_large_for_any_network_is_refused_in_our_words(
    tmp_path: Path, command: tuple[str, ...], option: str, bound: str
) -> None:
    network = build("gaitbase", {"channels": [8, 8, 8, 8], "parts": 4})
    checkpoint.save(tmp_path / "small", network, card_of(network, name="small", metric="cosine"))
    name, *options = command
    arguments = [name, str(tmp_path / "small"), "--out", str(tmp_path / "out"), *options, "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert f"{option}: {bound}" in result.stdout
    assert "pydantic" not in result.stdout


def test_widening_by_a_seed_is_repeatable() -> None:
    one, other, third = (widened(trained(), 2, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], third[name]) for name in one)


@pytest.mark.parametrize(
    ("times", "reason"), [(1, "is not wider"), (0, "is not wider"), (1_000, "less than or equal")]
)
def test_what_cannot_become_wider_is_refused(times: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        widened(trained(), times)
    with pytest.raises(ValueError, match="quantised"):
        widened(trained(quantised="int8"), 2)


@pytest.mark.parametrize(("name", "parts"), [("gaitset", 62), ("gaitpart", 4), ("swingait", 5)])
def test_a_network_of_other_layers_cannot_become_wider(name: str, parts: int) -> None:
    with pytest.raises(ValueError, match="only a GaitBase or a DeepGaitV2"):
        widened(trained(name, parts=parts), 2)

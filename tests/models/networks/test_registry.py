from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from models.card import POSE_READERS
from models.networks.network import GaitNetwork, SequenceBackbone
from models.networks.registry import ARCHITECTURES, UnknownArchitecture, build

SMALL = {"channels": (2, 4, 6, 8), "layers": (1, 1, 1, 1), "embedding_channels": 5}
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("gaitbase", {}),
    ("gaitbase", {"strides": (1, 2, 1, 1), "parts": 8}),
    ("deepgaitv2", {"mode": "2d"}),
    ("deepgaitv2", {"mode": "p3d"}),
    ("deepgaitv2", {"mode": "3d"}),
    ("gaitset", {}),
    ("gaitpart", {"layers": (2, 1, 1, 2)}),
    ("gaitpart", {"halvings": (0, 0, 3, 3), "parts": 8}),
    ("gaitgl", {}),
    ("gaitgl", {"layers": (2, 2, 1, 2), "halving": 1, "parts": 16}),
    ("gaitgl", {"projection_norm": True, "classifier": "product"}),
    ("swingait", {"layers": (1, 1, 2, 2)}),
    ("skeletongaitpp", {}),
]


RESIDUAL = [kind for kind in NETWORKS if kind[0] in ("gaitbase", "deepgaitv2")]
COMPARED = {  # parts and channels of the published network
    "gaitbase": (16, 256),
    "deepgaitv2": (16, 256),
    "gaitset": (62, 256),
    "gaitpart": (16, 128),
    "gaitgl": (64, 128),
    "swingait": (15, 256),
    "skeletongaitpp": (16, 256),
}


def small(architecture: str, config: dict[str, Any], **more: Any) -> GaitNetwork:
    torch.manual_seed(0)
    return build(architecture, {**SMALL, "identities": 3, **config, **more}).eval()


WINDOWED: list[tuple[str, dict[str, Any]]] = [
    ("gaitbase", {"window": 4, "mixing": True}),
    ("deepgaitv2", {"mode": "p3d", "window": 4}),
    ("gaitset", {"window": 4}),
    ("swingait", {"window": 4}),
]


def walks(count: int, frames: int, seed: int = 0, *, of: str = "gaitbase") -> torch.Tensor:
    """What a network of the name takes."""
    frame = (3, 64, 44) if of in POSE_READERS else (64, 44)
    return torch.rand(count, frames, *frame, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_names_itself_and_builds_with_its_defaults(name: str) -> None:
    with torch.device("meta"):
        network = build(name, {})
    assert ARCHITECTURES[name].config.architecture == name
    assert network.config == ARCHITECTURES[name].config()
    assert (network.parts, network.channels) == COMPARED[name]
    assert network.identities == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_configuration_survives_json(name: str) -> None:
    network = small(name, {})
    again = build(name, network.config.model_dump(mode="json"))
    assert again.config == network.config
    assert again.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "config",
    [
        {"chanels": (2, 4, 6, 8)},
        {"channels": (2, 4, 6)},
        {"channels": (2, 4, 6, 10**9)},
        {"layers": (0, 1, 1, 1)},
        {"parts": 0},
        {"identities": -1},
        {"embedding_source": "both"},
        {"window": 0},
    ],
)
def test_a_configuration_that_can_not_be_is_refused(name: str, config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        build(name, config)


def test_an_unknown_architecture_is_refused_with_the_known_names() -> None:
    with pytest.raises(UnknownArchitecture, match="'resnet'; known: deepgaitv2, gaitbase, gaitgl"):
        build("resnet", {})


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_outputs_have_the_shapes_that_are_promised(name: str, config: dict[str, Any]) -> None:
    network = small(name, config)
    output = network(walks(2, 3, of=name))
    assert output.embeddings.shape == (2, 5, network.parts)
    assert output.logits.shape == (2, 3, network.parts)
    if network.config.classifier == "cosine":
        assert output.logits.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_without_identities_there_are_embeddings_and_no_logits(
    name: str, config: dict[str, Any]
) -> None:
    network = small(name, config, identities=0)
    output = network(walks(2, 3, of=name))
    assert output.logits.shape == (2, 0, network.parts)
    assert output.embeddings.shape == (2, 5, network.parts)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), NETWORKS + WINDOWED)
def test_a_walk_is_embedded_alike_alone_in_a_batch_and_laid_end_to_end(
    name: str, config: dict[str, Any]
) -> None:
    network = small(name, config)
    lengths = [4, 1, 6, 4]
    sequences = [walks(1, length, seed, of=name)[0] for seed, length in enumerate(lengths)]
    with torch.inference_mode():
        alone = torch.cat([network(sequence[None]).embeddings for sequence in sequences])
        joined = network(torch.cat(sequences), lengths).embeddings
        batch = network(torch.stack([sequences[0], sequences[3]])).embeddings
    torch.testing.assert_close(joined, alone)
    torch.testing.assert_close(batch, alone[[0, 3]])


@pytest.mark.parametrize(("name", "config"), WINDOWED)
def test_a_long_walks_embedding_is_the_mean_of_its_windows(
    name: str, config: dict[str, Any]
) -> None:
    network, whole = small(name, config), small(name, {**config, "window": None})
    walk = walks(1, 11, of=name)
    with torch.inference_mode():
        parts = [whole(piece).embeddings for piece in torch.split(walk, [4, 4, 3], dim=1)]
        torch.testing.assert_close(network(walk).embeddings, torch.stack(parts).mean(0))
        assert torch.equal(network(walk[:, :5]).embeddings, whole(walk[:, :5]).embeddings)


@pytest.mark.parametrize(("name", "config"), NETWORKS + WINDOWED)
def test_what_one_sequence_holds_never_reaches_another(name: str, config: dict[str, Any]) -> None:
    """Exactly: the gradient of one sequence's embedding is zero in all frames of the others."""
    network = small(name, config)
    lengths = [3, 6, 3]
    frames = walks(1, sum(lengths), of=name)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(network(frames, lengths).embeddings[1].sum(), frames)
    before, own, after = torch.split(gradient, lengths)
    assert not before.any()
    assert not after.any()
    assert own.any()


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_the_order_of_frames_matters_to_temporal_networks_alone(
    name: str, config: dict[str, Any]
) -> None:
    network = small(name, config)
    walk = walks(1, 6, of=name)
    with torch.inference_mode():
        forwards = network(walk).embeddings
        shuffled = network(walk[:, [3, 0, 5, 2, 4, 1]]).embeddings
    assert torch.allclose(forwards, shuffled, atol=1e-5) is not network.is_temporal


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), NETWORKS + WINDOWED)
def test_every_weight_learns(name: str, config: dict[str, Any]) -> None:
    network = small(name, config).train()
    output = network(walks(1, 18, of=name)[0], torch.tensor([6, 6, 6]))
    (output.embeddings.square().sum() + output.logits.square().sum()).backward()
    still = [key for key, p in network.named_parameters() if p.grad is None]
    # which only imported networks have, whose logits leave the neck out
    unread = [] if network.config.classifier == "cosine" else ["head.neck.weight", "head.neck.bias"]
    assert still == unread


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_embeddings_and_logits_are_float32_under_autocast(
    name: str, config: dict[str, Any]
) -> None:
    network = small(name, config)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output = network(walks(2, 3, of=name))
    assert output.embeddings.dtype == output.logits.dtype == torch.float32
    with torch.inference_mode():
        exact = network(walks(2, 3, of=name))
    cosine = torch.cosine_similarity(output.embeddings, exact.embeddings, dim=1)
    assert cosine.min() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_a_network_compiles_whole(name: str, config: dict[str, Any]) -> None:
    network = small(name, config)
    torch.compiler.reset()  # it counts the networks before as this one compiled again
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(walks(2, 3, of=name)), network(walks(2, 3, of=name)))


@pytest.mark.slow
# dynamo makes an instance of every autograd function it sees, against torch's own advice
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["gaitbase", "deepgaitv2"])
def test_ragged_frames_compile_whole_for_any_lengths(name: str) -> None:
    network = small(name, {"mode": "2d"} if name == "deepgaitv2" else {})
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=True)
    for lengths in ([3, 2], [1, 4, 2]):
        frames, given = walks(1, sum(lengths), of=name)[0], torch.tensor(lengths)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(frames, given), network(frames, given))


@pytest.mark.parametrize(
    ("shape", "lengths", "complaint"),
    [
        ((3, 64, 44), None, "without lengths"),
        ((2, 0, 64, 44), None, "not empty"),
        ((1, 3, 64, 44), [3], "with lengths"),
        ((3, 64, 44), [2, 2], "add up to 4, but there are 3"),
        ((3, 64, 44), [3, 0], "at least one frame"),
        ((0, 64, 44), [], "at least one frame"),
        ((3, 64, 44), torch.tensor([[3]]), "int64 \\[n\\]"),
        ((3, 64, 44), torch.tensor([3.0]), "int64 \\[n\\]"),
        ((1, 2, 60, 44), None, "15 rows of features can't be divided into 16"),
    ],
)
def test_input_of_another_form_is_refused(shape: Any, lengths: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        small("gaitbase", {})(torch.zeros(shape), lengths)


def test_the_neck_is_compared_where_the_configuration_says_so() -> None:
    plain, necked = small("gaitbase", {}), small("gaitbase", {}, embedding_source="neck")
    necked.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        embeddings = plain(walks(2, 3)).embeddings
        assert torch.equal(plain.matching(embeddings), embeddings.transpose(1, 2))
        assert torch.equal(necked(walks(2, 3)).embeddings, embeddings)
        compared = necked.matching(embeddings).transpose(1, 2)
    torch.testing.assert_close(compared.norm(dim=1), torch.ones(2, 16))
    torch.testing.assert_close(
        necked.head.classifier(compared), necked.head(plain.pool(walks(2, 3))).logits
    )


@pytest.mark.parametrize(("name", "config"), [kind for kind in NETWORKS if kind not in RESIDUAL])
def test_the_stages_maps_lead_to_what_is_pooled(name: str, config: dict[str, Any]) -> None:
    network = small(name, config)
    backbone = network.backbone
    assert isinstance(backbone, SequenceBackbone)
    clips = walks(2, 4, of=name)
    with torch.inference_mode():
        maps = backbone.stage_maps(clips)
        assert torch.equal(backbone.over_stages(maps), backbone.over_clips(clips))
    assert [len(stage) for stage in maps] == [2] * 4
    assert [stage.shape[1] for stage in maps] == list(network.config.channels)
    assert len(backbone.in_order) == 4


@pytest.mark.parametrize(
    ("name", "config", "complaint"),
    [
        ("gaitset", {"parts": 31}, "62"),
        ("gaitset", {"quantised": "int8"}, "quantised"),
        ("swingait", {"quantised": "int8"}, "quantised"),
        ("skeletongaitpp", {"quantised": "int8"}, "quantised"),
        ("gaitpart", {"parts": 15}, "16 rows of features can't be divided into 15"),
        ("gaitpart", {"halvings": (0, 6, 0, 0)}, "32 rows can't be divided into 64 equal strips"),
        ("gaitgl", {"halving": 6}, "32 rows can't be divided into 64 equal strips"),
        ("gaitgl", {"parts": 48}, "64 rows of features can't be divided into 48"),
        ("swingait", {"parts": 16}, "15 rows of features can't be divided into 16"),
        ("swingait", {"channels": (2, 4, 40, 33)}, "33 channels can't be divided among 2 heads"),
    ],
)
def test_parts_strips_and_heads_that_do_not_fit_are_refused(
    name: str, config: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        small(name, config).pool(walks(1, 1, of=name))


@pytest.mark.parametrize("frames", [1, 2])
def test_a_gaitgl_repeats_a_walk_of_one_or_two_frames(frames: int) -> None:
    network, walk = small("gaitgl", {}), walks(1, frames)
    with torch.inference_mode():
        again = network(walk.repeat(1, 3 if frames == 1 else 2, 1, 1)).embeddings
        assert torch.equal(network(walk).embeddings, again)


def test_a_gaitgl_leaves_out_the_frames_behind_the_last_three() -> None:
    network, walk = small("gaitgl", {}), walks(1, 8)
    stage = network.backbone.in_order[0]
    with torch.inference_mode():
        whole = stage(network.backbone.stem(walk[None]))
        assert torch.equal(stage(network.backbone.stem(walk[None])[:, :, :6]), whole)
    assert whole.shape[2] == 2


def test_a_swingait_leaves_blocks_out_in_training_alone() -> None:
    network, walk = small("swingait", {"stochastic_depth": 0.9}), walks(1, 4)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = 0.0
    with torch.inference_mode():
        assert torch.equal(network(walk).embeddings, network(walk).embeddings)
        network.backbone.last_stage.train()
        drawn = [network(walk).embeddings for _ in range(8)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


@pytest.mark.parametrize(
    ("shape", "lengths", "complaint"),
    [
        ((1, 2, 64, 44), None, r"must be \[3, h, w\]: limbs, joints, silhouette"),
        ((1, 2, 2, 64, 44), None, r"must be \[3, h, w\]"),
        ((2, 3, 64, 44), None, r"\[n, s, 3, h, w\]"),
        ((1, 2, 3, 64, 44), [2], r"\[sum\(lengths\), 3, h, w\]"),
    ],
)
def test_a_network_that_reads_pose_maps_refuses_walks_without(
    shape: Any, lengths: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        small("skeletongaitpp", {})(torch.zeros(shape), lengths)


def test_a_network_that_reads_pose_maps_is_told_from_its_card() -> None:
    assert {name for name in ARCHITECTURES if small(name, {}).reads_pose} == POSE_READERS
    clip = walks(1, 4, of="skeletongaitpp")
    other = clip.clone()
    other[:, :, :2] = 0
    network = small("skeletongaitpp", {})
    with torch.inference_mode():
        assert not torch.allclose(network(clip).embeddings, network(other).embeddings)

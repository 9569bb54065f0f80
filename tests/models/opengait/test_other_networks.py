"""OpenGait's other networks: read from its files, equal to it, or refused.

`reference.npz` holds what OpenGait at commit 0efafd4 gives of one walk for the weights that
`tests.models.goldens.weights` derives from the keys and shapes in `reference.json`: of the first 2
and of 7 frames, every eighth channel of the embeddings and every fourth identity of the logits. Of
SkeletonGait++ the walk is `POSED`, its maps as OpenGait's loader lays them before silhouettes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.encoder import Encoder
from models.networks.network import GaitNetwork
from models.opengait import OpenGaitError, import_opengait, importing
from tests.models import goldens
from tests.models.opengait.test_opengait import convert_and_load, save_as_opengait, without

HERE = Path(__file__).parent
REFERENCE: dict[str, dict[str, Any]] = json.loads((HERE / "reference.json").read_text())
WALK = np.random.default_rng(3).integers(0, 2, (7, 64, 44)).astype(np.uint8) * 255
POSES = np.random.default_rng(4).integers(0, 256, (7, 2, 64, 44)).astype(np.uint8)
POSED = np.concatenate([POSES, WALK[:, None]], 1)
INDEX = "relative_position_index"


def window_index() -> Tensor:
    """The row of SwinGait's table of biases for each pair of places of a 3 x 3 x 5 window."""
    places = [(t, y, x) for t in range(3) for y in range(3) for x in range(5)]
    rows = [
        [(t - u + 2) * 45 + (y - v + 2) * 9 + (x - w + 4) for u, v, w in places]
        for t, y, x in places
    ]
    return torch.tensor(rows)


def state_of(name: str, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    listed = {key: tuple(shape) for key, shape in REFERENCE[name]["state_dict"].items()}
    state = goldens.weights({**listed, **shapes})
    return state | {key: window_index() for key in listed if key.endswith(INDEX)}


def expected(name: str, frames: int, what: str) -> Any:
    with np.load(HERE / "reference.npz") as file:
        return file[f"{name}/{frames}/{what}"]


@pytest.fixture(scope="module", params=REFERENCE)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A network's name, what it became once saved as ours, and the folder of that."""
    name: str = request.param
    path = save_as_opengait(tmp_path_factory.mktemp(name) / "model.pt", state_of(name))
    return name, convert_and_load(path, REFERENCE[name]["architecture"]), path.parent / "ours"


@pytest.mark.slow
@pytest.mark.parametrize("frames", [2, 7])
def test_an_imported_network_gives_what_opengait_gives(imported: Any, frames: int) -> None:
    name, network, _ = imported
    walk = POSED if network.reads_pose else WALK
    with torch.inference_mode():
        output = network(torch.from_numpy(walk[None, :frames]).float() / 255)
    wanted = expected(name, frames, "embeddings")
    assert goldens.relative_error(output.embeddings[0, ::8], wanted) <= goldens.TOLERANCE
    if network.identities:
        wanted = expected(name, frames, "logits")
        assert goldens.relative_error(output.logits[0, ::4], wanted) <= goldens.TOLERANCE


@pytest.mark.slow
def test_the_encoder_gives_what_opengait_gives_of_walks_of_any_lengths(imported: Any) -> None:
    name, _, folder = imported
    encoder = Encoder.open(folder, device="cpu", precision="float32")
    seen = POSED if encoder.reads_pose else WALK
    found = encoder.encode([seen, seen[:2], seen])
    for walk, frames in zip(found, (7, 2, 7), strict=True):
        wanted = expected(name, frames, "embeddings")
        assert goldens.relative_error(walk.T[::8], wanted) <= goldens.TOLERANCE


KIND = {
    "gaitset_casiab": {"channels": (32, 64, 128, 128), "parts": 62, "identities": 0},
    "gaitset_oumvlp": {"channels": (64, 128, 256, 256), "parts": 62, "identities": 0},
    "gaitpart_casiab": {"halvings": (0, 2, 3, 3), "layers": (2, 2, 1, 1), "parts": 16},
    "gaitpart_oumvlp": {"halvings": (0, 0, 3, 3), "layers": (2, 2, 2, 2), "parts": 16},
    "gaitgl_casiab": {"halving": 3, "classifier": "product", "projection_norm": True, "parts": 64},
    "gaitgl_grew_bnneck": {"halving": 1, "classifier": "cosine", "layers": (2, 2, 2, 2)},
    "swingait_b1122": {"layers": (1, 1, 2, 2), "parts": 15, "identities": 20},
    "skeletongaitpp_gait3d": {"layers": (1, 4, 4, 1), "identities": 20, "parts": 16},
    "skeletongaitpp_ccpg": {"layers": (1, 1, 1, 1), "channels": (64, 128, 256, 512), "parts": 16},
}


@pytest.mark.slow
def test_the_shapes_say_which_network_it_is(imported: Any) -> None:
    name, network, _ = imported
    config = network.config.model_dump()
    assert {key: config[key] for key in KIND[name]} == KIND[name]


FIRST_CONV = "Backbone.forward_block.feature.0.conv.weight"
LAST_CONV = "Backbone.forward_block.feature.12.conv.weight"
TIMES = "TFA.pooling_func.conv1d3x1.{}.0.conv.weight"
GLOBAL = "GLConvA1.global_conv3d.conv3d.weight"
PLACES = "transformer.layers.1.blocks.0.attn.relative_position_index"
SECOND_STREAM = "map_layer0.forward_block.0.weight"
PATCHES = "transformer.patch_embed.proj.weight"


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("gaitset_casiab", lambda s: without(s, "gl_block3.2.conv.weight"), "gl_block3.* missing"),
        (
            "gaitset_casiab",
            lambda s: without(s, "set_block3.forward_block.2.conv.weight"),
            "2 convolutions, not 2, 2, 1",
        ),
        (
            "gaitset_casiab",
            lambda s: {**s, "Head.fc_bin": torch.ones(31, 128, 256)},
            "parts: Input should be 62",
        ),
        ("gaitset_casiab", lambda s: {**s, "BNNecks.fc_bin": s["Head.fc_bin"]}, "not belong"),
        ("gaitpart_casiab", lambda s: without(s, FIRST_CONV), "not numbers 2, 5, 7, 10, 12"),
        ("gaitpart_casiab", lambda s: without(s, LAST_CONV), "two convolutions at least"),
        ("gaitpart_casiab", lambda s: {**s, FIRST_CONV: torch.tensor(1.0)}, "have no shape"),
        ("gaitpart_casiab", lambda s: without(s, TIMES.format(3)), r"conv1d3x1\.3\..* is missing"),
        (
            "gaitpart_casiab",
            lambda s: {**s, TIMES.format(3): torch.ones(16, 128, 3)},
            r"conv1d3x1\.3\..* has shape \[16, 128, 3\], not \[32, 128, 3\]",
        ),
        ("gaitpart_casiab", lambda s: {**s, TIMES.format(16): s[TIMES.format(0)]}, "not belong"),
        ("gaitgl_casiab", lambda s: without(s, GLOBAL), "convolutions of GLConvA1"),
        ("gaitgl_casiab", lambda s: without(s, "HPP.p"), "'HPP.p' is missing"),
        ("gaitgl_casiab", lambda s: without(s, "Head1.fc_bin"), "'Head1.fc_bin' is missing"),
        ("gaitgl_casiab", lambda s: {**s, "Bn.running_var": -s["Bn.running_var"]}, "negative"),
        (
            "gaitgl_casiab",
            lambda s: {**s, "Head0.fc_bin": torch.ones(60, 128, 128)},
            "64 rows of features can't be divided into 60",
        ),
        ("swingait_b1122", lambda s: without(s, PLACES), f"'{PLACES}' is missing"),
        ("swingait_b1122", lambda s: {**s, PLACES: s[PLACES].T}, f"'{PLACES}' is not what"),
        ("swingait_b1122", lambda s: {**s, PLACES: torch.ones(2)}, f"'{PLACES}' is not what"),
        ("swingait_b1122", lambda s: without(s, PATCHES), f"'{PATCHES}' is missing"),
        (
            "swingait_b1122",
            lambda s: {**s, "FCs.fc_bin": torch.ones(15, 512, 256)},
            "15 rows of features can't be divided into 14",
        ),
        ("swingait_b1122", lambda _: state_of("gaitset_casiab"), "the blocks of stage 1"),
        ("skeletongaitpp_ccpg", lambda s: without(s, SECOND_STREAM), f"'{SECOND_STREAM}' is miss"),
        ("skeletongaitpp_ccpg", lambda s: {**s, SECOND_STREAM: torch.ones(64, 1, 3, 3)}, "shape"),
        ("skeletongaitpp_ccpg", lambda _: state_of("swingait_b1122"), "the blocks of stage 1"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path,
    name: str,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    complaint: str,
) -> None:
    path = save_as_opengait(tmp_path / "model.pt", change(state_of(name)))
    with pytest.raises(OpenGaitError, match=complaint):
        import_opengait(path, REFERENCE[name]["architecture"])


@pytest.mark.parametrize("name", [name for name in sorted(KIND) if name.startswith("gait")])
def test_no_file_that_lacks_a_convolution_is_taken_for_a_shallower_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_of(name)
    convolutions = [key for key in state if key.endswith("weight") and state[key].ndim >= 4]
    assert len(convolutions) > 5
    for key in convolutions:
        there = without(state, key)
        monkeypatch.setattr(importing, "_read_state", lambda _, there=there: (there, 0))
        with pytest.raises(OpenGaitError):
            import_opengait(Path("model.pt"), REFERENCE[name]["architecture"])


@pytest.mark.parametrize("name", ["gaitset_casiab", "gaitgl_casiab"])
def test_a_network_without_a_neck_is_not_compared_behind_it(tmp_path: Path, name: str) -> None:
    path = save_as_opengait(tmp_path / "model.pt", state_of(name))
    with pytest.raises(OpenGaitError, match="has no neck"):
        import_opengait(path, REFERENCE[name]["architecture"], embedding_source="neck")


def test_the_part_that_a_swingait_computes_and_drops_is_no_part_of_ours(tmp_path: Path) -> None:
    state = state_of("swingait_b1122")
    path = save_as_opengait(tmp_path / "model.pt", state)
    network: GaitNetwork = import_opengait(path, "swingait", embedding_source="neck")[0]
    assert torch.equal(network.head.projection.weight, state["FCs.fc_bin"][:15])
    assert torch.equal(network.head.classifier.weight, state["BNNecks.fc_bin"][:15])
    ours = network.head.neck.running_mean
    assert ours is not None
    assert torch.equal(ours.view(256, 15), state["BNNecks.bn1d.running_mean"].view(256, 16)[:, :15])

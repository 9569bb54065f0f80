from __future__ import annotations

import pytest
import torch

from models.networks.cost import cost
from models.networks.registry import build

SMALL = {"channels": [4, 6, 8, 10], "layers": [1, 2, 1, 1], "parts": 4, "embedding_channels": 5}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("gaitbase", {}),
        ("deepgaitv2", {"mode": "2d"}),
        ("deepgaitv2", {"mode": "p3d"}),
        ("deepgaitv2", {"mode": "3d"}),
    ],
)
def test_the_maps_behind_the_stages_come_with_the_very_same_outputs(
    architecture: str, options: dict[str, str]
) -> None:
    torch.manual_seed(0)
    network = build(architecture, {**SMALL, **options, "identities": 3}).eval()
    before = cost(network)
    clips = torch.rand(2, 5, 64, 44)
    with torch.no_grad():
        output, maps = network.stages(clips)
        expected = network(clips)
    torch.testing.assert_close(output, expected)
    assert [tuple(found.shape) for found in maps] == [
        (2, 4, 5, 64, 44), (2, 6, 5, 32, 22), (2, 8, 5, 16, 11), (2, 10, 5, 16, 11)
    ]  # fmt: skip
    assert cost(network) == before


def test_clips_that_are_cut_into_windows_have_no_maps_of_their_own() -> None:
    network = build("gaitbase", {**SMALL, "window": 4, "identities": 3}).eval()
    with pytest.raises(ValueError, match="one window"):
        network.stages(torch.rand(1, 8, 64, 44))
    assert len(network.stages(torch.rand(1, 5, 64, 44))[1]) == 4

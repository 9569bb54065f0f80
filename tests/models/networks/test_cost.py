from __future__ import annotations

from typing import Any

import pytest
import torch

from models.networks.cost import cost
from models.networks.registry import build

SHALLOW = (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("name", "config", "parameters", "embedding_parameters", "giga_macs"),
    [
        ("gaitbase", {"identities": 74}, 7.305, 6.994, 1.178),
        ("deepgaitv2", {"mode": "2d", "identities": 20}, 11.513, 11.422, 2.424),
        ("deepgaitv2", {"mode": "p3d", "identities": 20}, 13.286, 13.196, 2.839),
        ("deepgaitv2", {"mode": "3d", "identities": 20}, 29.650, 29.559, 6.784),
        ("deepgaitv2", {"layers": SHALLOW, "identities": 74}, 8.339, 8.028, 1.386),
        ("deepgaitv2", {"mode": "3d", "layers": SHALLOW, "identities": 20}, 16.374, 16.284, 3.047),
        ("gaitset", {}, 2.626, 2.595, 0.109),  # with a neck, which the field's has not
        ("gaitset", {"channels": (64, 128, 256, 256)}, 6.345, 6.314, 0.430),
        ("gaitpart", {}, 1.208, 1.204, 0.107),  # likewise
        ("gaitgl", {"identities": 20}, 2.670, 2.490, 0.421),
        (
            "gaitgl",
            {
                "channels": (32, 64, 128, 256),
                "layers": (2, 2, 2, 2),
                "halving": 1,
                "embedding_channels": 256,
                "identities": 20,
            },
            11.554,
            11.193,
            1.952,
        ),
        # without the part that the field computes and drops
        ("swingait", {"identities": 20}, 10.575, 10.491, 1.645),
        ("swingait", {"layers": (1, 4, 4, 2), "identities": 20}, 13.196, 13.112, 2.615),
        (
            "gaitbase",
            {"channels": (16, 32, 64, 128), "embedding_channels": 128},
            0.573,
            0.569,
            0.074,
        ),
    ],
)
def test_costs_equal_those_measured_on_the_fields_code(
    name: str,
    config: dict[str, Any],
    parameters: float,
    embedding_parameters: float,
    giga_macs: float,
) -> None:
    with torch.device("meta"):
        network = build(name, config)
    found = cost(network)
    assert round(found.parameters / 1e6, 3) == parameters
    assert round(found.embedding_parameters / 1e6, 3) == embedding_parameters
    assert round(found.macs_per_frame / 1e9, 3) == giga_macs


def test_a_mixing_matrix_is_counted() -> None:
    config = {"channels": (2, 2, 2, 2), "embedding_channels": 2}
    plain, mixing = (cost(build("gaitbase", {**config, "mixing": m})) for m in (False, True))
    weights = (2 * 16) ** 2
    assert mixing.embedding_parameters - plain.embedding_parameters == weights
    assert (mixing.macs_per_frame - plain.macs_per_frame) * 30 == pytest.approx(weights)


def test_counting_leaves_the_network_as_it_is() -> None:
    network = build("gaitbase", {"channels": (2, 2, 2, 2), "embedding_channels": 2}).train()
    cost(network, frames=2)
    assert network.training
    assert next(network.parameters()).device.type == "cpu"

"""Every architecture the project can build, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from models.networks.deepgaitv2 import DeepGaitV2Config, build_deepgaitv2
from models.networks.gaitbase import GaitBaseConfig, build_gaitbase
from models.networks.gaitgl import GaitGLConfig, build_gaitgl
from models.networks.gaitpart import GaitPartConfig, build_gaitpart
from models.networks.gaitset import GaitSetConfig, build_gaitset
from models.networks.network import GaitNetwork, NetworkConfig
from models.networks.quantised import make_room_for_whole_numbers
from models.networks.skeletongaitpp import SkeletonGaitPPConfig, build_skeletongaitpp
from models.networks.swingait import SwinGaitConfig, build_swingait

C = TypeVar("C", bound=NetworkConfig)


class UnknownArchitecture(ValueError):
    """No architecture has this name."""


@dataclass(frozen=True)
class Architecture(Generic[C]):
    """The configuration an architecture takes, and how a network is made from it."""

    config: type[C]
    builder: Callable[[C], GaitNetwork]

    def build(self, config: Mapping[str, object]) -> GaitNetwork:
        """An untrained network.

        Raises:
            ValueError: an unknown key, or a value out of range (pydantic's ValidationError).
        """
        network = self.builder(self.config.model_validate(dict(config)))
        if network.config.quantised:
            make_room_for_whole_numbers(network)
        return network


ARCHITECTURES: Final[dict[str, Architecture[Any]]] = {
    "gaitbase": Architecture(GaitBaseConfig, build_gaitbase),
    "deepgaitv2": Architecture(DeepGaitV2Config, build_deepgaitv2),
    "gaitset": Architecture(GaitSetConfig, build_gaitset),
    "gaitpart": Architecture(GaitPartConfig, build_gaitpart),
    "gaitgl": Architecture(GaitGLConfig, build_gaitgl),
    "swingait": Architecture(SwinGaitConfig, build_swingait),
    "skeletongaitpp": Architecture(SkeletonGaitPPConfig, build_skeletongaitpp),
}


def architecture(name: str) -> Architecture[Any]:
    """The architecture called `name`.

    Raises:
        UnknownArchitecture: there is none.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnknownArchitecture(f"unknown architecture {name!r}; known: {known}") from None


def build(name: str, config: Mapping[str, object]) -> GaitNetwork:
    """An untrained network of the architecture `name`; `config` as its pydantic model takes it.

    Raises:
        UnknownArchitecture: no architecture is called `name`.
        ValueError: the configuration does not fit it.
    """
    return architecture(name).build(config)

"""Problems of a recipe that show without its data and its teachers.

Imports torch, which is slow: check everything else of a recipe first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError

from models.card import CARD, CheckpointError, InputSize, read_card
from models.networks.registry import UnknownArchitecture, architecture
from training.evaluation.protocols import AUTO_PROTOCOL, PROTOCOLS
from training.recipe import Problem, Recipe

QUANTISED: Final = (
    "a quantised network cannot be trained: train the float one it was made from "
    "(default-float for the default)"
)

_THIN = {"channels": (1, 1, 1, 1), "layers": (1, 1, 1, 1), "embedding_channels": 1}


def recipe_problems(recipe: Recipe) -> tuple[Problem, ...]:
    """An unknown protocol or architecture, a network that cannot be built or read silhouettes."""
    return (*_protocol(recipe), *_student(recipe))


def network_problems(name: str, config: Mapping[str, object]) -> Iterator[Problem]:
    """What is wrong with a network of the architecture `name`, found on the thinnest of its kind.

    That one has the same strides and parts, so it meets what a first step would. The state of the
    generator of random numbers stays as it is.
    """
    size = InputSize()
    try:
        kind = architecture(name)
        if kind.config.model_validate(dict(config)).classifier != "cosine":
            yield Problem("student.config.classifier", "only a network of cosines can be trained")
        thin = kind.config.model_validate(dict(config)).model_copy(update=_THIN)
        with torch.random.fork_rng(devices=()), torch.no_grad():
            sketch = kind.builder(thin).eval()
            sketch.pool(torch.zeros(1, 1, *sketch.frame_shape(size.height, size.width)))
    except UnknownArchitecture as error:
        yield Problem("student.architecture", str(error))
    except ValidationError as error:
        for wrong in error.errors(include_url=False):
            yield Problem(".".join(("student.config", *map(str, wrong["loc"]))), wrong["msg"])
    except ValueError as error:
        yield Problem("student.config.parts", str(error))


def _protocol(recipe: Recipe) -> Iterator[Problem]:
    protocol = recipe.evaluation.protocol
    if protocol not in (AUTO_PROTOCOL, *PROTOCOLS):
        known = ", ".join(sorted(PROTOCOLS))
        yield Problem("evaluation.protocol", f"there is no {protocol!r}; known: auto, {known}")


def _student(recipe: Recipe) -> Iterator[Problem]:
    wanted = recipe.student
    if wanted.checkpoint is not None:
        yield from _start(wanted.checkpoint)
        return
    if wanted.architecture is None:
        return
    if "identities" in wanted.config:
        yield Problem("student.config.identities", "follows from the dataset; leave it out")
        return
    yield from network_problems(wanted.architecture, wanted.config)


def _start(checkpoint: Path) -> Iterator[Problem]:
    """Why a student cannot start from a checkpoint, as far as the card says; missing is no reason.

    `training.recipe.missing_files` finds those.
    """
    if not (checkpoint / CARD).is_file():
        return
    try:
        config = read_card(checkpoint).config
    except CheckpointError as error:
        yield Problem("student.checkpoint", str(error))
        return
    if config.get("quantised"):
        yield Problem("student", QUANTISED)

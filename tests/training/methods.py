"""An example of every kind of term, for the tests that run over the registry of methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from models.networks.device import MixedPrecision
from models.networks.head import GaitOutput
from models.networks.network import GaitNetwork
from models.networks.registry import build
from training.objective.lesson import MASKED, PLAIN, STRONG, Networks
from training.objective.objective import Objective
from training.objective.student import ConnectedStudent
from training.recipe import Recipe, load
from training.run.trainer import Learner, TaughtBatch

FULL: Final = MixedPrecision(torch.device("cpu"), half=False)
STRONGER: Final = "data.strong={strips=1.0, strip_frames=[1.0, 1.0], rotate=1.0}"

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "triplet": ("{kind='triplet'}",),
    "cross-entropy": ("{kind='cross-entropy'}",),
    "mutual": ("{kind='mutual'}", "data.swap={probability=1.0}"),
    "relation-networks": ("{kind='relation-networks', width=4}",),
    "logit": ("{kind='logit'}",),
    "logit-regression": ("{kind='logit-regression'}",),
    "decoupled": ("{kind='decoupled', warm_up=0.5}",),
    "generalised": ("{kind='generalised', top=2, warm_up=0.5}",),
    "correlation": ("{kind='correlation'}",),
    "views": ("{kind='views', weak_gate=0.0, strong_gate=0.0, connector=true}", STRONGER),
    "exits": ("{kind='exits'}",),
    "fusion": ("{kind='fusion', trainable=true}",),
    "boundary": ("{kind='boundary', connector=true}",),
    "hint": ("{kind='hint'}",),
    "ranking": ("{kind='ranking'}",),
    "relation": ("{kind='relation'}",),
    "angles": ("{kind='angles'}",),
    "query": ("{kind='query', width=4}", "data.masked={probability=1.0}"),
}
"""The term, and what else its recipe needs."""


def settings_of(kind: str) -> tuple[str, ...]:
    """Settings that make the kind the only term."""
    term, *others = EXAMPLES[kind]
    return (f"terms=[{term}]", *others)


def student_network(parts: int = 4, channels: int = 8, identities: int = 4) -> GaitNetwork:
    """Untrained; with 64 or 32 parts of a network that keeps the rows for them."""
    strides = [1, 1, 1, 1] if parts > 16 else [1, 2, 2, 1]
    config = {
        "channels": [4, 4, 6, 8],
        "parts": parts,
        "strides": strides,
        "embedding_channels": channels,
        "identities": identities,
    }
    return build("gaitbase", config)


def teacher_network(channels: int = 6, identities: int = 4) -> GaitNetwork:
    """A frozen one that reads the order of frames."""
    config = {
        "channels": [4, 6, 8, 10],
        "layers": [1, 1, 1, 1],
        "parts": 8,
        "embedding_channels": channels,
        "identities": identities,
    }
    return build("deepgaitv2", config).eval().requires_grad_(False)


def itself(rows: Tensor) -> Tensor:
    """What gathering is in a run of one process."""
    return rows


def learner_of(kind: str, networks: Networks, *settings: str, **group: object) -> Learner:
    """Student and objective of one kind of term, in float32."""
    recipe = recipe_of(kind, *settings)
    connectors = [teacher.channels for teacher in networks.teachers] if recipe.connects else []
    asks = any(term.asks_stages for term in recipe.terms)
    student = ConnectedStudent(networks.student, connectors, stages=asks)
    gather = group.get("gather", itself)
    rank = group.get("rank", 0)
    assert callable(gather)
    assert isinstance(rank, int)
    return Learner(student, Objective(recipe, gather, networks, rank=rank), FULL)


def recipe_of(kind: str, *settings: str) -> Recipe:
    return load("student-baseline", settings=(*settings_of(kind), "steps=400", *settings))


def batch_of(kind: str, *, parts: int, channels: int, subjects: int = 4) -> TaughtBatch:
    """Clips of `subjects` people, two of each, and a teacher's outputs of any shape for them."""
    data = recipe_of(kind).data
    n = 2 * subjects
    taught = [PLAIN, *([STRONG] if data.strong else [])]
    views = (*taught, *([MASKED] if data.masked else []))
    draw = torch.Generator().manual_seed(1)
    clips = torch.rand(len(views) * n, 3, 64, 44, generator=draw)
    outputs = GaitOutput(
        torch.randn(len(taught) * n, channels, parts, generator=draw),
        torch.randn(len(taught) * n, subjects, parts, generator=draw).tanh(),
    )
    lost = None
    if data.strong:
        lost = torch.zeros(n, 64, dtype=torch.bool)
        lost[::2, 10:20] = True
    return TaughtBatch(
        clips,
        None,
        torch.arange(subjects).repeat_interleave(2),
        (outputs,),
        views,
        torch.arange(n).reshape(-1, 2).flip(1).flatten() if data.swap else None,
        lost,
    )


def rows_of(batch: TaughtBatch, rows: slice) -> TaughtBatch:
    """Some of a batch's sequences, of every view."""
    n = len(batch.labels)

    def cut(tensor: Tensor) -> Tensor:
        return torch.cat([part[rows] for part in torch.split(tensor, n)])

    start = rows.start or 0
    return batch._replace(
        clips=cut(batch.clips),
        labels=batch.labels[rows],
        teacher_outputs=tuple(
            GaitOutput(cut(o.embeddings), cut(o.logits)) for o in batch.teacher_outputs
        ),
        partners=None if batch.partners is None else batch.partners[rows] - start,
        lost=None if batch.lost is None else batch.lost[rows],
    )


def gradients_of(learner: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """By name, of every weight that has one."""
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: w.grad for name, w in learner.named_parameters() if w.grad is not None}

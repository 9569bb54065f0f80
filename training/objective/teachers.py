"""Frozen teachers: load them, check them against the recipe, run them.

They are never part of what is trained or saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models import checkpoint
from models.networks.device import MixedPrecision
from models.networks.head import GaitOutput
from models.networks.network import ClipBackbone, FrameBackbone, GaitNetwork
from training.data.options import OrderedClip, RandomLengthClip
from training.recipe import Problem, Recipe, RecipeError
from training.recipe.terms import (
    AnglesTerm,
    AnyTerm,
    CorrelationTerm,
    DecoupledTerm,
    ExitsTerm,
    GeneralisedTerm,
    InformativeTemperature,
    LogitTerm,
    MutualTerm,
    RankingTerm,
    RelationNetworksTerm,
    ViewsTerm,
)

MOST_AVERAGED = 4096
"""Identities of which relation-networks can keep averages of distributions: k² numbers."""


@dataclass(frozen=True)
class Teacher:
    """A frozen network and what its card says of it.

    Attributes:
        name: for messages.
        network: in eval mode, without gradients.
        digest: names its weights.
        identities: hash of the ids it was trained on, or None when its card has none.
        prototypes: whether its classifier is of `training.derive.prototypes`, not of its training.
    """

    name: str
    network: GaitNetwork
    digest: str
    identities: str | None
    prototypes: bool = False

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Teacher:
        """Read a checkpoint and freeze it.

        Raises:
            models.card.CheckpointError: there is none, or it is damaged.
        """
        network, card = checkpoint.load(path, device)
        freeze(network)
        known = card.training.get("identity_hash")
        return cls(
            card.name or path.name, network, card.digest, known if isinstance(known, str) else None
        )


def freeze(network: GaitNetwork) -> None:
    """Eval mode and no gradients: neither weights nor batch statistics can move."""
    network.eval()
    network.requires_grad_(False)


def read_by(network: GaitNetwork, clips: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
    """What a network reads of clips: of those with pose maps the silhouettes, if it needs no maps.

    Args:
        network: a student or a teacher.
        clips: `[n, s, h, w]`, or `[n, s, 3, h, w]` with pose maps; with lengths n and s as one.
        lengths: frames of each clip where they differ, else None.
    """
    have_pose = clips.ndim == (5 if lengths is None else 4)
    return clips[..., -1, :, :] if have_pose and not network.reads_pose else clips


def run_teachers(
    teachers: Sequence[Teacher],
    clips: Tensor,
    lengths: tuple[int, ...] | None,
    precision: MixedPrecision,
) -> tuple[GaitOutput, ...]:
    """Outputs of each teacher for the clips that the student sees, in float32."""
    with torch.no_grad(), precision.autocast():
        outputs = [
            teacher.network(read_by(teacher.network, clips, lengths), lengths)
            for teacher in teachers
        ]
    return tuple(GaitOutput(o.embeddings.float(), o.logits.float()) for o in outputs)


def check(
    recipe: Recipe, teachers: Sequence[Teacher], student: GaitNetwork, identities: str
) -> None:
    """Refuse a recipe whose terms ask of a teacher or a batch what it cannot give.

    Args:
        recipe: the run.
        teachers: loaded.
        student: the network to train.
        identities: hash of the ids the student learns.

    Raises:
        RecipeError: every term and teacher that do not fit, each with what would help.
    """
    problems = []
    for index, term in enumerate(recipe.terms):
        reason = _too_few(recipe, term, student) or _unsuited(recipe, term, student)
        if reason:
            problems.append(Problem(f"terms.{index}", f"{term.kind}: {reason}"))
    for number, teacher in enumerate(teachers):
        if teacher.network.is_temporal and not isinstance(recipe.data.clip, OrderedClip):
            problems.append(
                Problem(
                    "data.clip.kind",
                    f"teacher {teacher.name!r} reads the order of frames: clips must be 'ordered'",
                )
            )
        for index, term in enumerate(recipe.terms):
            reason = None
            if term.asks_identities or (term.taught and recipe.distillation.teachers == "best"):
                reason = _identities_differ(recipe, teacher, student, identities)
            if reason is None and term.compares_coordinates and not term.connects:
                reason = _widths_differ(teacher, student)
            if reason:
                problems.append(
                    Problem(
                        f"terms.{index}",
                        f"{term.kind} with teacher {number} ({teacher.name!r}): {reason}",
                    )
                )
    if problems:
        raise RecipeError(problems)


def _too_few(recipe: Recipe, term: AnyTerm, student: GaitNetwork) -> str | None:
    batch = recipe.batch
    if isinstance(term, RankingTerm | AnglesTerm) and batch.subjects * batch.sequences < 3:
        return (
            "two sequences a batch have no ranking and no angles; raise batch.subjects or "
            "batch.sequences"
        )
    if (
        isinstance(
            term,
            LogitTerm | DecoupledTerm | GeneralisedTerm | CorrelationTerm | ViewsTerm | MutualTerm,
        )
        and isinstance(term.temperature, InformativeTemperature)
        and student.identities < 3
    ):
        return (
            f"a temperature from the number of identities needs 3, there are {student.identities}; "
            "give temperature as a number"
        )
    return None


def _unsuited(recipe: Recipe, term: AnyTerm, student: GaitNetwork) -> str | None:
    if isinstance(term, GeneralisedTerm) and term.top >= student.identities:
        return f"of {student.identities} identities, the {term.top} likeliest leave no rest"
    if (
        isinstance(term, RelationNetworksTerm)
        and term.average_weight
        and student.identities > MOST_AVERAGED
    ):
        return (
            f"averages of {student.identities} identities' distributions do not fit; up to "
            f"{MOST_AVERAGED} do, otherwise set average_weight = 0"
        )
    known = isinstance(student.backbone, FrameBackbone | ClipBackbone)
    if isinstance(term, ExitsTerm) and not known:
        return (
            "exits halve a stage's maps and pool equal strips, as fits the stages of GaitBase and "
            f"DeepGaitV2, and not a {student.config.architecture}'s"
        )
    if term.asks_stages:
        clip = recipe.data.clip
        if not isinstance(clip, RandomLengthClip) and student.windows([clip.frames])[1] != [1]:
            return (
                f"it reads the maps of whole clips, and the student cuts {clip.frames} frames into "
                f"windows of {student.config.window}; take fewer frames"
            )
    return None


def classifies(teacher: Teacher, recipe: Recipe, count: int, identities: str) -> bool:
    """Whether a teacher's own logits are cosines of the `count` identities of this hash."""
    listed = teacher.identities == identities or recipe.distillation.assume_same_identities
    if teacher.network.config.classifier != "cosine":
        return False
    return listed and teacher.network.identities == count


def _identities_differ(
    recipe: Recipe, teacher: Teacher, student: GaitNetwork, identities: str
) -> str | None:
    if recipe.distillation.prototypes or classifies(
        teacher, recipe, student.identities, identities
    ):
        return None
    instead = (
        "set distillation.prototypes = true, or use the terms ranking, relation, query, hint or "
        "boundary (the latter with connector = true)"
    )
    if teacher.network.config.classifier != "cosine":
        return f"the teacher's logits are no cosines, which all others' are; {instead}"
    if teacher.network.identities != student.identities:
        return (
            f"the teacher knows {teacher.network.identities} identities and the student learns "
            f"{student.identities}; {instead}"
        )
    what = "does not say which" if teacher.identities is None else "was trained on other"
    return (
        f"the teacher {what} identities, so its logits' order may not be the student's; {instead}, "
        "or set distillation.assume_same_identities = true if you know that both list the same "
        "ids in the same order"
    )


def _widths_differ(teacher: Teacher, student: GaitNetwork) -> str | None:
    if teacher.network.channels == student.channels:
        return None
    return (
        f"it compares coordinate by coordinate, but the teacher's parts have "
        f"{teacher.network.channels} channels and the student's {student.channels}; set "
        "connector = true, or "
        f"student.config.embedding_channels = {teacher.network.channels}"
    )

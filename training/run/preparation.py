"""Load the data and networks that a recipe names, and find mismatches before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import JsonValue

from models import checkpoint
from models.card import Card, CardThreshold
from models.checkpoint import card_of
from models.networks.device import MixedPrecision
from models.networks.network import GaitNetwork
from models.networks.registry import build
from training.data.identities import identity_hash, split
from training.data.pack import Pack
from training.data.sampling import SamplingError, meeting
from training.derive.prototypes import with_prototypes
from training.evaluation.operating_points import threshold_at
from training.objective.teachers import Teacher, check, classifies, freeze
from training.process import provenance
from training.process.events import Progressed, Reporter, SilentReporter
from training.recipe import Problem, Recipe, RecipeError
from training.run.checking import QUANTISED, network_problems, recipe_problems
from training.run.state import Run


@dataclass(frozen=True)
class Preparation:
    """What a run works with.

    Attributes:
        train: walks of the subjects to learn.
        packs: walks of each stage of the run, the last of them `train`.
        held_out: walks of others, to evaluate on; None when there are none.
        student: the network to train, on the run's device.
        teachers: frozen, on the run's device.
        identities: hash of the ids learnt, in the order of the logits.
        origin: digest of the checkpoint the student starts from, if any.
    """

    train: Pack
    packs: tuple[Pack, ...]
    held_out: Pack | None
    student: GaitNetwork
    teachers: tuple[Teacher, ...]
    identities: str
    origin: str | None

    @property
    def reads_pose(self) -> bool:
        """Whether a network of the run reads pose maps."""
        return any(n.reads_pose for n in (self.student, *(t.network for t in self.teachers)))

    def run(self, recipe: Recipe) -> Run:
        """What makes this run the one it is."""
        return Run(
            recipe=recipe,
            dataset=self.train.content_hash,
            stages=tuple(pack.content_hash for pack in self.packs[:-1]),
            identities=self.identities,
            origin=self.origin,
            teachers=tuple(teacher.digest for teacher in self.teachers),
        )


def prepare(
    recipe: Recipe,
    device: torch.device,
    teachers: tuple[Teacher, ...] | None = None,
    reporter: Reporter | None = None,
    kept: Path | None = None,
) -> Preparation:
    """Open the dataset, build or load the student, load the teachers, and check that they fit.

    Args:
        recipe: of the run.
        device: where networks go.
        teachers: as an earlier preparation with the same teachers and dataset made them, to save
            the time; None: the recipe's are loaded.
        reporter: told how far prototypes are, which take minutes with many walks.
        kept: folder in which prototypes are kept, so that a run that goes on finds them there.

    Raises:
        RecipeError: something the recipe names is missing or does not fit.
        training.data.PackError: the dataset cannot be read.
        models.card.CheckpointError: a teacher or the student cannot be read.
    """
    if recipe.data.dataset is None:
        raise RecipeError([Problem("data.dataset", "name a packed dataset (or pass --dataset)")])
    pack = Pack.open(recipe.data.dataset)
    partition = None if pack.partition is None else (pack.partition.train, pack.partition.test)
    try:
        chosen = split(pack.subjects, partition, recipe.data.validation)
    except ValueError as error:
        where = "data.validation" if recipe.data.validation else "data.dataset"
        raise RecipeError([Problem(where, str(error))]) from error
    if recipe.batch.subjects > len(chosen.train):
        raise RecipeError(
            [
                Problem(
                    "batch.subjects",
                    f"{recipe.batch.subjects} subjects a batch, but only "
                    f"{len(chosen.train)} to train on",
                )
            ]
        )
    identities = identity_hash(chosen.train)
    torch.manual_seed(recipe.seed)
    student, origin = _student(recipe, len(chosen.train), identities)
    if student.config.quantised:
        raise RecipeError([Problem("student", QUANTISED)])
    if teachers is None:
        teachers = tuple(Teacher.load(t.checkpoint, device) for t in recipe.teachers)
    for part in recipe.in_stages():
        check(part, teachers, student, identities)
    train = pack.subset(chosen.train)
    _require_scenes(recipe, train, "batch.same_scene")
    packs = (*_of_stages(recipe, train), train)
    _check_pose(student, teachers, packs)
    telling = reporter or SilentReporter()
    teachers = tuple(
        _with_classifier(
            teacher, recipe, train, identities, device, telling, kept and kept / str(number)
        )
        for number, teacher in enumerate(teachers)
    )
    return Preparation(
        train=train,
        packs=packs,
        held_out=pack.subset(chosen.held_out) if chosen.held_out else None,
        student=student.to(device),
        teachers=teachers,
        identities=identities,
        origin=origin,
    )


def _of_stages(recipe: Recipe, train: Pack) -> Iterator[Pack]:
    """The walks of each stage; of a pack with a partition those to train on."""
    for number, stage in enumerate(recipe.stages):
        where = f"stages.{number}.dataset"
        pack = train
        if stage.dataset is not None and stage.dataset != recipe.data.dataset:
            pack = Pack.open(stage.dataset)
            known = pack.partition
            partition = None if known is None else (known.train, known.test)
            try:
                pack = pack.subset(split(pack.subjects, partition, 0.0).train)
            except ValueError as error:
                raise RecipeError([Problem(where, str(error))]) from error
        if recipe.batch.subjects > len(pack.subjects):
            reason = f"{recipe.batch.subjects} subjects a batch, but it has {len(pack.subjects)}"
            raise RecipeError([Problem(where, reason)])
        _require_scenes(recipe, pack, where)
        yield pack


def _require_scenes(recipe: Recipe, pack: Pack, where: str) -> None:
    """Raise `RecipeError` if batches of people who meet in scenes cannot be drawn from a pack."""
    if recipe.batch.same_scene > 1:
        try:
            meeting(pack, recipe.batch.subjects, recipe.batch.same_scene)
        except SamplingError as error:
            raise RecipeError([Problem(where, str(error))]) from error


def _check_pose(student: GaitNetwork, teachers: Sequence[Teacher], packs: Sequence[Pack]) -> None:
    """Refuse walks without pose maps if a network reads them."""
    named = [("the student", student), *((f"teacher {t.name!r}", t.network) for t in teachers)]
    readers = [name for name, network in named if network.reads_pose]
    without = [pack for pack in packs if not pack.has_pose]
    if readers and without:
        reason = f"{readers[0]} reads pose maps, which {without[0].path} does not have"
        raise RecipeError([Problem("data.dataset", reason)])


def _student(recipe: Recipe, count: int, identities: str) -> tuple[GaitNetwork, str | None]:
    """The student, and the digest of the checkpoint it starts from."""
    wanted = recipe.student
    if wanted.checkpoint is None:
        if wanted.architecture is None:
            raise RecipeError([Problem("student", "names neither architecture nor checkpoint")])
        if problems := recipe_problems(recipe):
            raise RecipeError(problems)
        return build(wanted.architecture, {**wanted.config, "identities": count}), None
    trained, card = checkpoint.load(wanted.checkpoint, "cpu")
    settled = {**card.config, "identities": count, "classifier": "cosine"}
    student = _build(card.architecture, settled)
    weights = trained.state_dict()
    known = trained.config.classifier == "cosine" and card.identities == count
    if not known or card.training.get("identity_hash") != identities:
        # Other identities, or an export without: no classifier for these. The new one keeps its
        # random start.
        fresh = student.head.classifier.state_dict(prefix="head.classifier.")
        weights = {**weights, **fresh}
    student.load_state_dict(weights)
    return student, card.digest


def _with_classifier(
    teacher: Teacher,
    recipe: Recipe,
    train: Pack,
    identities: str,
    device: torch.device,
    reporter: Reporter,
    kept: Path | None,
) -> Teacher:
    """A teacher whose logits, if a term asks for them, are of the identities in `train`."""
    asked = recipe.distillation.teachers == "best" or any(
        term.asks_identities for term in recipe.terms
    )
    if not asked or classifies(teacher, recipe, len(train.subjects), identities):
        return teacher
    made: dict[str, JsonValue] = {
        "teacher": teacher.digest,
        "dataset": train.content_hash,
        "identity_hash": identities,
    }
    if kept is not None and kept.exists():
        network, card = checkpoint.load(kept, device)
        if card.training == made:
            freeze(network)
            return replace(teacher, network=network, identities=identities, prototypes=True)
    told = 0

    def tell(walks: int) -> None:
        nonlocal told
        percent = 100 * walks // len(train)
        if told < percent < 100:  # that it is over, what follows tells
            told = percent
            reporter.report(Progressed(0, recipe.total_steps, None, {"prototypes": percent / 100}))

    precision = MixedPrecision.choose(recipe.precision, device)
    network = with_prototypes(teacher.network, train, precision, tell)
    freeze(network)
    if kept is not None:
        described = card_of(network, name=teacher.name, metric="cosine", training=made)
        checkpoint.save(kept, network, described)
    return replace(teacher, network=network, identities=identities, prototypes=True)


def _build(architecture: str, config: Mapping[str, object]) -> GaitNetwork:
    if problems := tuple(network_problems(architecture, config)):
        raise RecipeError(problems)
    return build(architecture, config)


def card(
    network: GaitNetwork,
    recipe: Recipe,
    preparation: Preparation,
    *,
    name: str,
    seconds: float,
    processes: int,
    precision: MixedPrecision,
    losses: Mapping[str, float],
    metrics: Mapping[str, JsonValue],
    thresholds: tuple[CardThreshold, ...],
) -> Card:
    """The card of a trained network: everything needed to train it again, and what it reached.

    Args:
        network: what is saved.
        recipe: the run's.
        preparation: the run's.
        name: of the checkpoint.
        seconds: time spent on steps.
        processes: how many shared them.
        precision: that products were computed in.
        losses: at the end.
        metrics: on held-out walks.
        thresholds: from held-out walks.
    """
    pack = preparation.train
    training: dict[str, JsonValue] = {
        "recipe": without_paths(recipe).model_dump(mode="json"),
        "seed": recipe.seed,
        "steps": recipe.total_steps,
        "commit": provenance.commit(),
        "dataset": {
            "name": pack.path.name,
            "content_hash": pack.content_hash,
            "subjects": len(pack.subjects),
            "sequences": len(pack),
            "held_out_subjects": len(preparation.held_out.subjects) if preparation.held_out else 0,
        },
        "stages": [
            {"name": pack.path.name, "content_hash": pack.content_hash}
            for pack in preparation.packs[:-1]
        ],
        "identity_hash": preparation.identities,
        "started_from": preparation.origin,
        "teachers": [
            {"name": t.name, "digest": t.digest, "prototypes": t.prototypes}
            for t in preparation.teachers
        ],
        "losses": dict(losses),
        "seconds": round(seconds, 1),
        "hardware": provenance.hardware(next(network.parameters()).device),
        "processes": processes,
        "precision": precision.name,
        "versions": dict(provenance.versions()),
    }
    return card_of(
        network,
        name=name,
        metric=recipe.metric,
        mirror=recipe.mirror,
        threshold=threshold_at(thresholds),
        thresholds=thresholds,
        training=training,
        metrics=metrics,
    )


def without_paths(recipe: Recipe) -> Recipe:
    """The recipe with file names instead of paths, which mean nothing where a card is read."""
    data, student = recipe.data, recipe.student
    return recipe.model_copy(
        update={
            "data": data.model_copy(
                update={"dataset": Path(data.dataset.name) if data.dataset else None}
            ),
            "student": student.model_copy(
                update={"checkpoint": Path(student.checkpoint.name) if student.checkpoint else None}
            ),
            "stages": tuple(
                stage.model_copy(
                    update={"dataset": Path(stage.dataset.name) if stage.dataset else None}
                )
                for stage in recipe.stages
            ),
            "teachers": tuple(
                teacher.model_copy(update={"checkpoint": Path(teacher.checkpoint.name)})
                for teacher in recipe.teachers
            ),
        }
    )

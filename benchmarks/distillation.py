"""Which objective makes the better student? Arms that differ in nothing but their objective.

    python -m benchmarks.distillation RECIPE --dataset train.pack --teacher T [--student S]
        --test rendered=test.pack:cross-view real-dev=real-dev.pack:nine-pairs --out RUNS
        [--arms NAME …] [--seeds 0 1 2] [--set KEY=VALUE …] [--results FILE.json]

All arms of a seed begin with the same weights and take their steps side by side on the very same
clips, and the teacher is asked once for all of them, so a difference between two arms is one of
their objectives: terms, weights and ramp, as `ARMS` has them. RECIPE gives network, batches,
optimiser and steps. Of a test pack with a partition the `TEST_SET` is judged.

Each arm's mean over seeds is compared with the arm of labels alone, paired: one draw of test
subjects for both. So an interval tells how a figure would move with other people, not with other
seeds; those stand beside it, one by one. An arm and seed that is finished is not trained again, so
processes can share the seeds out, and one more judge them all; what RUNS has from another recipe,
dataset, teacher or student is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks import machine
from models import checkpoint
from models.card import read_card
from models.encoder.encoder import Encoder
from training.data.batches import BatchSource
from training.data.pack import Pack
from training.evaluation import (
    Resampling,
    embedded_by,
    labels_of,
    protocol_named,
    tested_walks,
)
from training.evaluation.bootstrap import Estimate, percentile_estimate, subject_weights
from training.evaluation.retrieval import EvaluationProtocol, Retrieval
from training.objective.teachers import Teacher
from training.process import provenance
from training.recipe import Distillation, Problem, Recipe, RecipeError, load
from training.recipe.terms import AnyTerm, DecoupledTerm, InformativeTemperature
from training.run.distributed import Group, join
from training.run.meter import Meter
from training.run.preparation import Preparation, card, prepare, without_paths
from training.run.trainer import Trainer, require_finite

ALONE: Final = "labels alone"
_PUBLISHED: Final = load("gaitkd")
_CORRECTED: Final = load("gaitkd-corrected")
_LABELS: Final = ("triplet", "cross-entropy")


def _arm(recipe: Recipe, *kinds: str) -> tuple[tuple[AnyTerm, ...], Distillation]:
    """A shipped recipe's objective, of its terms only these."""
    return tuple(term for term in recipe.terms if term.kind in kinds), recipe.distillation


def _decoupled() -> tuple[tuple[AnyTerm, ...], Distillation]:
    labels, distillation = _arm(_CORRECTED, *_LABELS)
    term = DecoupledTerm(kind="decoupled", temperature=InformativeTemperature())
    return (*labels, term), distillation


ARMS: Final[Mapping[str, tuple[tuple[AnyTerm, ...], Distillation]]] = {
    ALONE: (_arm(_PUBLISHED, *_LABELS)[0], Distillation()),
    "logit, T = 4": _arm(_PUBLISHED, *_LABELS, "logit"),
    "GaitKD as published": _arm(_PUBLISHED, *_LABELS, "logit", "boundary"),
    # From here the labels' own cross-entropy counts half, as in gaitkd-corrected.
    "logit, informative T": _arm(_CORRECTED, *_LABELS, "logit"),
    "decoupled": _decoupled(),
    "logit and boundary behind a connector": _arm(_CORRECTED, *_LABELS, "logit", "boundary"),
    "logit and ranking": _arm(_CORRECTED, *_LABELS, "logit", "ranking"),
    "GaitKD corrected": _arm(_CORRECTED, *_LABELS, "logit", "boundary", "ranking"),
}


@dataclass(frozen=True, eq=False)
class Exam:
    """Walks to judge on, and by which protocol."""

    name: str
    walks: Pack
    protocol: str
    rule: EvaluationProtocol

    @classmethod
    def parse(cls, text: str) -> Exam:
        """Read `NAME=PACK:PROTOCOL`. What does not fit shows now, not after hours of training.

        Raises:
            argparse.ArgumentTypeError: there is no such pack or protocol, or they do not fit.
        """
        name, _, rest = text.partition("=")
        pack, _, protocol = rest.rpartition(":")
        try:
            rule = protocol_named(protocol)
            walks = tested_walks(Pack.open(Path(pack)))
            rule.split(labels_of(walks))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from error
        return cls(name, walks, protocol, rule)


def recipe_of(base: Recipe, arm: str, seed: int) -> Recipe:
    """The run of one arm and seed: by its card anybody can take it again."""
    terms, distillation = ARMS[arm]
    # In all arms alike, or a teacher that does not know the students' identities suited some only.
    distillation = distillation.model_copy(update={"prototypes": base.distillation.prototypes})
    changed = {"seed": seed, "terms": terms, "distillation": distillation}
    recipe = base.model_copy(update=changed)
    return recipe if recipe.distils else recipe.model_copy(update={"teachers": ()})


def finished(folder: Path, recipe: Recipe, preparation: Preparation) -> bool:
    """Whether a folder holds what this run would make.

    Raises:
        RecipeError: it holds another run's.
        models.card.CheckpointError: it holds no checkpoint.
    """
    if not folder.exists():
        return False
    found: Mapping[str, Any] = read_card(folder).training
    made = (
        found["recipe"],
        found["dataset"]["content_hash"],
        found["identity_hash"],
        found["started_from"],
        [teacher["digest"] for teacher in found["teachers"]],
    )
    wanted = (
        without_paths(recipe).model_dump(mode="json"),
        preparation.train.content_hash,
        preparation.identities,
        preparation.origin,
        [teacher.digest for teacher in preparation.teachers],
    )
    if made != wanted:
        reason = f"{folder} is of another recipe, dataset, teacher or student; choose another --out"
        raise RecipeError([Problem("--out", reason)])
    return True


def train(
    base: Recipe,
    arms: Sequence[str],
    seed: int,
    out: Path,
    group: Group,
    teachers: tuple[Teacher, ...] | None = None,
) -> tuple[Teacher, ...] | None:
    """Train every arm that is not finished, with one seed, side by side.

    Args:
        base: network, batches, optimiser and steps.
        arms: keys of `ARMS`.
        seed: of all arms.
        out: folder of the arms' folders.
        group: this process alone.
        teachers: what an earlier seed returned, which spares giving them prototypes again.

    Returns:
        The teachers, prepared; None where no arm has any.
    """
    prepared: dict[str, tuple[Recipe, Preparation]] = {}
    for arm in arms:
        recipe = recipe_of(base, arm, seed)
        preparation = prepare(recipe, group.device, teachers if recipe.distils else None)
        if recipe.distils:
            teachers = preparation.teachers
        if not finished(_folder(out, arm, seed), recipe, preparation):
            prepared[arm] = (recipe, preparation)
    if not prepared:
        return teachers
    trainers = {arm: Trainer(*parts, group) for arm, parts in prepared.items()}
    # The arm of labels alone has no teacher to ask: one that has teaches all.
    teaching = max(prepared, key=lambda arm: prepared[arm][0].distils)
    source = BatchSource(
        prepared[teaching][1].train,
        subjects=base.batch.subjects,
        sequences=base.batch.sequences,
        clip=base.data.clip,
        seed=seed,
        device=group.device,
        pose=prepared[teaching][1].reads_pose,
    )
    meters = {arm: Meter(base.steps, 0, {}) for arm in prepared}
    for batch in source.iterate(start=0, stop=base.steps):
        taught = trainers[teaching].teach(batch)
        for arm, trainer in trainers.items():
            meters[arm].add(*trainer.learn(taught), taught.labels)
        done = trainers[teaching].step
        if done % base.log_every == 0 or done == base.steps:
            means = {arm: meters[arm].read(done, t.rate).metrics for arm, t in trainers.items()}
            print(json.dumps({"seed": seed, "step": done, **means}), file=sys.stderr)
            for metrics in means.values():
                require_finite(metrics["loss"], done)
    for arm, trainer in trainers.items():
        described = card(
            trainer.result,
            *prepared[arm],
            name=arm,
            seconds=trainer.seconds,
            processes=1,
            precision=trainer.precision,
            losses=meters[arm].last,
            metrics={},
            thresholds=(),
        )
        checkpoint.save(_folder(out, arm, seed), trainer.result, described)
    return teachers


def judge(folder: Path, test: Exam, device: torch.device) -> Retrieval:
    """What a checkpoint finds, compared as its card says."""
    encoder = Encoder.open(folder, device=str(device), precision="float32")
    method = embedded_by(encoder, test.walks, mirror=test.rule.mirror)
    return test.rule.run(labels_of(test.walks), method)


def compare(
    found: Mapping[str, Sequence[Retrieval]], resampling: Resampling
) -> dict[str, dict[str, object]]:
    """Each arm's headline, mean over seeds, and its distance from the arm of labels alone."""
    rows: dict[str, dict[str, object]] = {}
    draws = {arm: over_seeds(retrievals, resampling) for arm, retrievals in found.items()}
    for arm, (values, replicates) in draws.items():
        mean = float(np.mean(values))
        rows[arm] = {
            "rank1": shown(percentile_estimate(mean, replicates, resampling.confidence)),
            "seeds": [round(100 * value, 1) for value in values],
        }
        if arm != ALONE and ALONE in draws:
            alone, theirs = draws[ALONE]
            gain = percentile_estimate(
                mean - float(np.mean(alone)), replicates - theirs, resampling.confidence
            )
            rows[arm]["gain over labels alone"] = shown(gain)
    return rows


def main() -> None:
    """Train what is missing, judge everything, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path, help="checkpoint that every arm starts from")
    parser.add_argument("--test", nargs="+", type=Exam.parse, required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    base = load(
        arguments.recipe,
        settings=arguments.set,
        dataset=arguments.dataset,
        teachers=[arguments.teacher],
        student=arguments.student,
    )
    group, resampling = join(), Resampling()
    tables: dict[str, object] = {}
    teachers = None
    for seed in arguments.seeds:
        teachers = train(base, arguments.arms, seed, arguments.out, group, teachers)
    for test in arguments.test:
        found = {
            arm: [
                judge(_folder(arguments.out, arm, seed), test, group.device)
                for seed in arguments.seeds
            ]
            for arm in arguments.arms
        }
        teacher = {"teacher": [judge(arguments.teacher, test, group.device)]}
        tables[test.name] = {
            "dataset": test.walks.content_hash,
            "protocol": test.protocol,
            **compare({**teacher, **found}, resampling),
        }
    machine.publish(
        {
            "machine": machine.describe(),
            "commit": provenance.commit(),
            "recipe": base.description,
            "settings": arguments.set,
            "dataset": Pack.open(arguments.dataset).content_hash,
            "steps": base.steps,
            "sequences a step": base.batch.subjects * base.batch.sequences,
            "teacher": read_card(arguments.teacher).digest,
            "student": read_card(arguments.student).digest if arguments.student else None,
            "seeds": arguments.seeds,
            **tables,
        },
        arguments.results,
    )


def _folder(out: Path, arm: str, seed: int) -> Path:
    return out / f"{arm.replace(' ', '-').replace(',', '').replace('=', '')}-{seed}"


def over_seeds(
    retrievals: Sequence[Retrieval], resampling: Resampling
) -> tuple[list[float], np.ndarray[Any, Any]]:
    """The headline of each seed, and replicates of their mean with other people."""
    trials = [retrieval.trials for retrieval in retrievals]
    figures = [retrieval.figures[0] for retrieval in retrievals]
    weights = subject_weights(len(trials[0].subjects), resampling)
    values = [t.value(figure) for t, figure in zip(trials, figures, strict=True)]
    draws = [t.replicates(figure, weights) for t, figure in zip(trials, figures, strict=True)]
    return values, np.mean(draws, axis=0)


def shown(estimate: Estimate) -> list[float]:
    """Percent: value, lower and upper bound."""
    bounds = (estimate.value, estimate.low, estimate.high)
    return [round(100 * bound, 1) for bound in bounds if bound is not None]


if __name__ == "__main__":
    main()

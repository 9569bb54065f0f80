"""Which objective makes the better student? Arms that differ in nothing but their terms.

    python -m benchmarks.distillation RECIPE --dataset train.pack --teacher T [--student S] \
        --test rendered=test.pack:cross-view real-dev=real-dev.pack:nine-pairs --out RUNS

All arms of a seed take their steps side by side on the very same clips, and the teacher is asked
once for all of them, so a difference between two arms is one of their objectives. RECIPE gives
network, batches, optimiser and steps; the terms are those below. Each arm's mean over seeds is
compared with the arm of labels alone, paired: one draw of test subjects for both. Seeds that are
finished are not trained again.
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
from models.encoder import Encoder
from training import provenance
from training.data.batches import BatchSource
from training.data.pack import Pack
from training.distributed import Group, join
from training.evaluation import EmbeddedSequences, Resampling
from training.evaluation.bootstrap import Estimate, percentile_estimate, subject_weights
from training.evaluation.evaluate import embed_pack, labels_of
from training.evaluation.protocols import Retrieval, protocol_named
from training.preparation import card, prepare
from training.recipe import Recipe, load
from training.trainer import Trainer

ALONE: Final = "labels alone"
_TRIPLET: Final = {"kind": "triplet"}
_LABELS: Final = [_TRIPLET, {"kind": "cross-entropy"}]
# Where there is a teacher's distribution the labels' own counts half (gaitkd-corrected).
_GUIDED: Final = [_TRIPLET, {"kind": "cross-entropy", "weight": 0.5}]
_INFORMATIVE: Final = {"kind": "logit", "temperature": {"gap": 0.8}}
_BOUNDARY: Final = {"kind": "boundary", "weight": 0.003, "connector": True}
_RANKING: Final = {"kind": "ranking"}
_CORRECTED: Final = {"ramp": 0.05}
_PUBLISHED: Final = {"teachers": "sum", "parts": "truncate"}

ARMS: Final[Mapping[str, tuple[list[Any], Mapping[str, Any]]]] = {
    ALONE: (_LABELS, {}),
    "logit, T = 4": ([*_LABELS, {"kind": "logit"}], _PUBLISHED),
    "GaitKD as published": (
        [*_LABELS, {"kind": "logit"}, {"kind": "boundary", "weight": 0.003}],
        _PUBLISHED,
    ),
    "logit, informative T": ([*_GUIDED, _INFORMATIVE], _CORRECTED),
    "decoupled": ([*_GUIDED, {"kind": "decoupled", "temperature": {"gap": 0.8}}], _CORRECTED),
    "logit and boundary behind a connector": ([*_GUIDED, _INFORMATIVE, _BOUNDARY], _CORRECTED),
    "logit and ranking": ([*_GUIDED, _INFORMATIVE, _RANKING], _CORRECTED),
    "GaitKD corrected": ([*_GUIDED, _INFORMATIVE, _BOUNDARY, _RANKING], _CORRECTED),
}


@dataclass(frozen=True)
class Test:
    """A data set to judge on, and by which protocol."""

    name: str
    pack: Path
    protocol: str
    mirror: bool

    @classmethod
    def parse(cls, text: str) -> Test:
        """Read `NAME=PACK:PROTOCOL`; probes are mirrored where the protocol does so."""
        name, _, rest = text.partition("=")
        pack, _, protocol = rest.rpartition(":")
        return cls(name, Path(pack), protocol, protocol_named(protocol).mirror)


def train(base: Recipe, arms: Sequence[str], seed: int, out: Path, group: Group) -> None:
    """Train every arm with one seed, side by side."""
    trainers: dict[str, Trainer] = {}
    prepared = {}
    for arm in arms:
        terms, distillation = ARMS[arm]
        changed = {"seed": seed, "terms": terms, "distillation": distillation}
        recipe = Recipe.model_validate({**base.model_dump(), **changed})
        prepared[arm] = (recipe, prepare(recipe, group.device))
        trainers[arm] = Trainer(*prepared[arm], group)
    first = trainers[arms[0]]
    source = BatchSource(
        prepared[arms[0]][1].train,
        subjects=base.batch.subjects,
        sequences=base.batch.sequences,
        clip=base.data.clip,
        seed=seed,
        device=group.device,
    )
    losses: dict[str, dict[str, float]] = {}
    for batch in source.iterate(start=0, stop=base.steps):
        lesson = first.teach(batch)
        for arm, trainer in trainers.items():
            loss, _ = trainer.learn(lesson)
            losses[arm] = {name: round(float(value), 4) for name, value in loss.parts.items()}
        if first.step % base.log_every == 0:
            print(json.dumps({"seed": seed, "step": first.step, **losses}), file=sys.stderr)
    for arm, trainer in trainers.items():
        recipe, preparation = prepared[arm]
        described = card(
            trainer.result,
            recipe,
            preparation,
            name=arm,
            seconds=trainer.seconds,
            processes=1,
            precision=trainer.precision,
            losses=losses[arm],
            metrics={},
            thresholds=(),
        )
        checkpoint.save(_folder(out, arm, seed), trainer.result, described)


def judge(folder: Path, test: Test, device: torch.device) -> Retrieval:
    """What a checkpoint finds, compared as its card says."""
    encoder = Encoder.open(folder, device=str(device), precision="float32")
    pack = Pack.open(test.pack)
    mirrored = embed_pack(encoder, pack, mirror=True) if test.mirror else None
    method = EmbeddedSequences(
        encoder.card.name, embed_pack(encoder, pack), encoder.card.metric, mirrored
    )
    return protocol_named(test.protocol).run(labels_of(pack), method)


def compare(
    found: Mapping[str, Sequence[Retrieval]], resampling: Resampling
) -> dict[str, dict[str, object]]:
    """Each arm's headline, mean over seeds, and its distance from the arm of labels alone."""
    rows: dict[str, dict[str, object]] = {}
    draws = {arm: _over_seeds(retrievals, resampling) for arm, retrievals in found.items()}
    for arm, (values, replicates) in draws.items():
        mean = float(np.mean(values))
        rows[arm] = {
            "rank1": _shown(percentile_estimate(mean, replicates, resampling.confidence)),
            "seeds": [round(100 * value, 1) for value in values],
        }
        if arm != ALONE and ALONE in draws:
            alone, theirs = draws[ALONE]
            gain = percentile_estimate(
                mean - float(np.mean(alone)), replicates - theirs, resampling.confidence
            )
            rows[arm]["gain over labels alone"] = _shown(gain)
    return rows


def main() -> None:
    """Train what is missing, judge everything, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path, help="checkpoint that every arm starts from")
    parser.add_argument("--test", nargs="+", type=Test.parse, required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
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
    for seed in range(arguments.seeds):
        missing = [a for a in arguments.arms if not _folder(arguments.out, a, seed).exists()]
        if missing:
            train(base, missing, seed, arguments.out, group)
    for test in arguments.test:
        found = {
            arm: [
                judge(_folder(arguments.out, arm, seed), test, group.device)
                for seed in range(arguments.seeds)
            ]
            for arm in arguments.arms
        }
        teacher = {"teacher": [judge(arguments.teacher, test, group.device)]}
        tables[test.name] = {
            "dataset": Pack.open(test.pack).content_hash,
            "protocol": test.protocol,
            **compare({**teacher, **found}, resampling),
        }
    machine.publish(
        {
            "machine": machine.describe(),
            "commit": provenance.commit(),
            "steps": base.steps,
            "sequences a step": base.batch.subjects * base.batch.sequences,
            "teacher": checkpoint.read_card(arguments.teacher).digest,
            "seeds": arguments.seeds,
            **tables,
        },
        arguments.results,
    )


def _folder(out: Path, arm: str, seed: int) -> Path:
    return out / f"{arm.replace(' ', '-').replace(',', '').replace('=', '')}-{seed}"


def _over_seeds(
    retrievals: Sequence[Retrieval], resampling: Resampling
) -> tuple[list[float], np.ndarray[Any, Any]]:
    trials = [retrieval.trials for retrieval in retrievals]
    figures = [retrieval.figures[0] for retrieval in retrievals]
    weights = subject_weights(len(trials[0].subjects), resampling)
    values = [t.value(figure) for t, figure in zip(trials, figures, strict=True)]
    draws = [t.replicates(figure, weights) for t, figure in zip(trials, figures, strict=True)]
    return values, np.mean(draws, axis=0)


def _shown(estimate: Estimate) -> list[float]:
    """Percent: value, lower and upper bound."""
    bounds = (estimate.value, estimate.low, estimate.high)
    return [round(100 * bound, 1) for bound in bounds if bound is not None]


if __name__ == "__main__":
    main()

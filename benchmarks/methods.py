"""Every method in one table: what each is worth with the same budget and the same walks.

    python -m benchmarks.methods --dataset train.pack --teacher T --teacher T2 --out RUNS
        --validation validation.pack:cross-view
        --test rendered=test.pack:cross-view real=people.pack:nine-pairs
        [--size night|full|smoke] [--rows NAME …] [--seeds 0 1 2] [--set KEY=VALUE …]
        [--results FILE.json] [--page docs/methods.md]

A row is a shipped recipe, or one like it, in the network, batches, optimiser and steps of `SIZES`.
All rows of a seed begin with the same weights. Rows that vary walks alike take their steps side by
side on the very same clips, and each teacher is asked once for all of them; rows with views or
stages of their own run by themselves. A killed run goes on where its rows were saved; finished rows
and what they made of the exams' walks are kept, so that processes can share seeds or rows out and
one more make the table. A folder of other rows is refused. A row that the teachers do not suit is
named with the reason and left out.

A gain is paired: one draw of the test's people for both rows, mean over seeds. Its interval tells
how it would move with other people, not with other seeds. `--validation` is for choices; nothing is
chosen by a `--test`. The time of a step is that of the student's share of it (on a CPU, what it
computes, not what it waits for), relative to the row without a teacher in the same loop; the
teachers' share comes on top.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.distillation import Exam, finished, over_seeds, shown
from models import checkpoint
from models.card import read_card
from models.encoder import Encoder
from training.data.batches import BatchSource
from training.data.pack import Pack
from training.evaluation import EmbeddedSequences, Resampling, embedded_by, labels_of
from training.evaluation.bootstrap import percentile_estimate
from training.evaluation.retrieval import Retrieval
from training.objective.teachers import Teacher
from training.process import provenance
from training.process.events import SilentReporter
from training.process.stopping import StopRequest
from training.recipe import Recipe, RecipeError, load
from training.run import state as states
from training.run.distributed import Group, join
from training.run.loop import CHECKPOINT, run
from training.run.meter import Meter
from training.run.preparation import Preparation, card, prepare
from training.run.trainer import TaughtBatch, Trainer, require_finite

ALONE: Final = "no teacher"
GAITKD: Final = "GaitKD as published"
SHIPS: Final = "GaitKD corrected"
_TRIPLET: Final = "{kind='triplet'}"
_LABELS: Final = f"{_TRIPLET}, {{kind='cross-entropy'}}"
_HALVED: Final = f"{_TRIPLET}, {{kind='cross-entropy', weight=0.5}}"
_TENTH: Final = f"{_TRIPLET}, {{kind='cross-entropy', weight=0.1}}"
_STANDARDISED: Final = "{kind='logit', standardise=true, temperature=2.0, weight=9.0}"
_INFORMATIVE: Final = "temperature={gap=0.8}"
_RANKING: Final = "{kind='ranking'}"
_SWAP: Final = "data.swap={probability=0.5}"


AGAINST: Final = {
    "gain over no teacher": ALONE,
    "gain over GaitKD": GAITKD,
    "gain over what ships": SHIPS,
}
COLOURS: Final = ("#777777", "#0b6fb8", "#c7541b", "#3a8f3a", "#8a3ab8")


@dataclass(frozen=True)
class Row:
    """A recipe by name, what is changed in it, and how many teachers it has."""

    recipe: str
    settings: tuple[str, ...] = ()
    teachers: int = 1


def _terms(labels: str, *terms: str) -> str:
    return f"terms=[{', '.join((labels, *terms))}]"


def _like_corrected(labels: str, *terms: str) -> Row:
    return Row("gaitkd-corrected", (_terms(labels, *terms),))


ROWS: Final[Mapping[str, Row]] = {
    ALONE: Row("student-baseline", teachers=0),
    "patch swap": Row("patch-swap", teachers=0),
    "CORSD": Row("corsd", teachers=0),
    "KD, T = 4": _like_corrected(_LABELS, "{kind='logit'}"),
    "KD, informative T": _like_corrected(_HALVED, f"{{kind='logit', {_INFORMATIVE}}}"),
    "LSKD": _like_corrected(_TENTH, _STANDARDISED),
    "DIST": _like_corrected(_LABELS, "{kind='correlation'}"),
    "DKD, β = 8": Row("dkd"),
    "GDKD": Row("gdkd"),
    "GDKD, sets of each part": Row("gdkd", ("terms.2.shared=false",)),
    "AB": _like_corrected(_LABELS, "{kind='boundary', weight=0.003}"),
    "FitNets": _like_corrected(_LABELS, "{kind='hint'}"),
    "RKD": _like_corrected(_LABELS, "{kind='angles'}"),
    "relation, balanced": _like_corrected(_LABELS, "{kind='relation'}"),
    "ranking": _like_corrected(_LABELS, _RANKING),
    "OFA-KD": Row("ofa"),
    "OFA-KD, tied heads": Row("ofa", ("terms.2.heads=tied",)),
    "Fuse Before Transfer": Row("fuse-before-transfer"),
    "CRLD": Row("crld"),
    "GKD": Row("gkd"),
    "KD and patch swap": Row(
        "gaitkd-corrected", (_terms(_HALVED, f"{{kind='logit', {_INFORMATIVE}}}"), _SWAP)
    ),
    GAITKD: Row("gaitkd", ("distillation.prototypes=true",)),
    SHIPS: Row("gaitkd-corrected"),
    "GDKD and ranking": _like_corrected(
        _HALVED, f"{{kind='generalised', {_INFORMATIVE}}}", _RANKING
    ),
    "LSKD and ranking": _like_corrected(_TENTH, _STANDARDISED, _RANKING),
    "GaitKD corrected and patch swap": Row("gaitkd-corrected", (_SWAP,)),
    "GaitKD as published, two teachers": Row("gaitkd", ("distillation.prototypes=true",), 2),
    "GaitKD corrected, two teachers": Row("gaitkd-corrected", teachers=2),
    "two teachers in turns (ASDT)": Row("asdt", ("distillation.period=20",), 2),
    "two teachers by chance": Row("gaitkd-corrected", ("distillation.teachers=random",), 2),
    "the better of two for each walk": Row(
        "gaitkd-corrected",
        (
            _terms(
                _HALVED,
                f"{{kind='logit', {_INFORMATIVE}}}",
                "{kind='boundary', weight=0.003, connector=true}",
            ),
            "distillation.teachers=best",
        ),
        2,
    ),
}

SIZES: Final[Mapping[str, tuple[str, ...]]] = {
    # An eighth of the published width: what two cores train in a night.
    "night": (
        "student={architecture='gaitbase', config={channels=[8, 16, 32, 64], parts=16, "
        "embedding_channels=32, window=30}}",
        "data.clip={kind='ordered', frames=12, skip=4}",
        "batch={subjects=8, sequences=4}",
        "optimiser={kind='adamw', learning_rate=2e-3, weight_decay=1e-2}",
        "schedule={kind='cosine', warm_up=20}",
        "steps=400",
        "average=0.99",
        "clip_gradient=10.0",
        "save_every=50",
        "log_every=50",
    ),
    # The budget of student-baseline, for whatever recipe a row is like.
    "full": (
        "student={architecture='gaitbase', config={channels=[16, 32, 64, 128], parts=16, "
        "embedding_channels=32, window=30}}",
        "data.clip={kind='ordered', frames=20, skip=4}",
        "batch={subjects=16, sequences=4}",
        "optimiser={kind='sgd'}",
        "schedule={kind='cosine', warm_up=200}",
        "steps=6000",
        "average=0.999",
        "clip_gradient=10.0",
        "save_every=200",
        "log_every=50",
    ),
    "smoke": (
        "student={architecture='gaitbase', config={channels=[4, 4, 8, 8], parts=4, "
        "embedding_channels=8}}",
        "data.clip={kind='ordered', frames=3}",
        "batch={subjects=3, sequences=2}",
        "optimiser={kind='adamw'}",
        "schedule={kind='cosine'}",
        "steps=3",
        "average=0.9",
        "clip_gradient=10.0",
        "save_every=1",
        "log_every=3",
    ),
}


def recipe_of(
    name: str,
    seed: int,
    size: str,
    settings: Sequence[str],
    dataset: Path,
    teachers: Sequence[Path],
) -> Recipe:
    """The run of one row and seed: by its card anybody can take it again.

    Raises:
        RecipeError: the row does not bear the settings.
    """
    row = ROWS[name]
    sized = [*SIZES[size], *settings]
    if row.recipe == "gkd":
        # Stages share the steps, two thirds for the representation, and keep the frozen backbone.
        steps = load("student-baseline", settings=sized).steps
        before = 2 * steps // 3
        sized += ["student.frozen_stages=4", f"steps={steps - before}", f"stages.0.steps={before}"]
        sized += ["stages.0.warm_up=0", f"schedule.warm_up={0 if steps < 100 else 20}"]
    wanted = [*sized, *row.settings, f"seed={seed}", "evaluation.every=0"]
    if size == "smoke" and "GDKD" in name:
        wanted.append("terms.2.top=2")  # of very few people
    return load(row.recipe, settings=wanted, dataset=dataset, teachers=teachers[: row.teachers])


class Kept:
    """Counts what is kept for the backward pass, storages once: the memory that a step adds."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}

    def __enter__(self) -> Kept:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def megabytes(self) -> float:
        """Of all storages."""
        return round(sum(self._storages.values()) / 1e6, 1)


class Runner:
    """Trains rows that are not finished.

    Args:
        out: folder of the rows' folders.
        group: this process alone.
    """

    def __init__(self, out: Path, group: Group) -> None:
        self._out, self._group = out, group
        self._teachers: tuple[Teacher, ...] = ()
        self.left_out: dict[str, str] = {}

    def train(self, recipes: Mapping[str, Recipe], seed: int) -> None:
        """Train every row of a seed."""
        prepared: dict[str, tuple[Recipe, Preparation]] = {}
        # Most teachers first: the others take what was prepared for those.
        for name in sorted(recipes, key=lambda name: -len(recipes[name].teachers)):
            recipe = recipes[name]
            count = len(recipe.teachers)
            known = self._teachers[:count] if len(self._teachers) >= count else None
            try:
                preparation = prepare(
                    recipe, self._group.device, known, kept=self._out / "prototypes"
                )
            except RecipeError as error:
                self.left_out[name] = str(error)
                continue
            if count > len(self._teachers):
                self._teachers = preparation.teachers
            if not finished(self.folder(name, seed) / CHECKPOINT, recipe, preparation):
                prepared[name] = (recipe, preparation)
        alike = defaultdict(list)
        for name, (recipe, _) in prepared.items():
            alike[recipe.data.model_dump_json() if not recipe.stages else name].append(name)
        for names in alike.values():
            print(json.dumps({"seed": seed, "rows": names}), file=sys.stderr)
            if prepared[names[0]][0].stages:
                self._alone(names[0], seed, *prepared[names[0]])
            else:
                self._side_by_side(seed, {name: prepared[name] for name in names})

    def folder(self, name: str, seed: int) -> Path:
        """Of a row and seed."""
        plain = "".join(c if c.isalnum() else "-" for c in name)
        return self._out / f"{plain}-{seed}"

    def _alone(self, name: str, seed: int, recipe: Recipe, preparation: Preparation) -> None:
        run(
            recipe,
            self.folder(name, seed),
            preparation,
            name=name,
            reporter=SilentReporter(),
            stop=StopRequest(),
            group=self._group,
        )

    def _side_by_side(self, seed: int, rows: Mapping[str, tuple[Recipe, Preparation]]) -> None:
        trainers, spent, kept, meters = {}, {}, {}, {}
        for name, (recipe, preparation) in rows.items():
            folder = self.folder(name, seed)
            folder.mkdir(parents=True, exist_ok=True)
            trainers[name] = Trainer(recipe, preparation, self._group)
            saved = states.load(folder, run=preparation.run(recipe))
            if saved is not None:
                trainers[name].restore(saved)
            spent[name], kept[name] = (saved or {}).get("spent", (0.0, 0.0))
            meters[name] = Meter(recipe.steps, trainers[name].step, (saved or {}).get("losses", {}))
        teaching = max(rows, key=lambda name: len(rows[name][0].teachers))
        recipe, preparation = rows[teaching]
        source = BatchSource(
            preparation.train,
            subjects=recipe.batch.subjects,
            sequences=recipe.batch.sequences,
            clip=recipe.data.clip,
            seed=seed,
            device=self._group.device,
            pose=preparation.reads_pose,
        )
        clock = time.process_time if self._group.device.type == "cpu" else time.monotonic
        begin = min(trainer.step for trainer in trainers.values())
        for batch in source.iterate(start=begin, stop=recipe.steps):
            taught = trainers[teaching].teach(batch)
            # A row may be further, if it was saved later than others before the run was killed.
            learning = {name: t for name, t in trainers.items() if t.step == batch.step}
            for name, trainer in learning.items():
                mine = _taught_by(taught, len(rows[name][0].teachers))
                began = clock()
                if not kept[name]:
                    with Kept() as keeping:
                        found = trainer.learn(mine)
                    kept[name] = keeping.megabytes
                else:
                    found = trainer.learn(mine)
                    spent[name] += clock() - began
                meters[name].add(*found, batch.labels)
            done = batch.step + 1
            if done % recipe.save_every == 0 or done == recipe.steps:
                for name, trainer in learning.items():
                    losses = meters[name].read(trainer.step, trainer.rate).metrics
                    require_finite(losses["loss"], done)
                    here = {
                        **trainer.snapshot(),
                        "losses": losses,
                        "spent": (spent[name], kept[name]),
                    }
                    states.save(self.folder(name, seed), here, run=rows[name][1].run(rows[name][0]))
                print(json.dumps({"seed": seed, "step": done}), file=sys.stderr)
        for name, trainer in trainers.items():
            described = card(
                trainer.result,
                *rows[name],
                name=name,
                seconds=trainer.seconds,
                processes=1,
                precision=trainer.precision,
                losses=meters[name].last,
                metrics={
                    "learning_ms": round(1000 * spent[name] / max(recipe.steps - 1, 1), 2),
                    "kept_mb": kept[name],
                },
                thresholds=(),
            )
            checkpoint.save(self.folder(name, seed) / CHECKPOINT, trainer.result, described)


def _taught_by(taught: TaughtBatch, teachers: int) -> TaughtBatch:
    """What a row with so many teachers sees of a batch."""
    return taught._replace(teacher_outputs=taught.teacher_outputs[:teachers])


def judged(folder: Path, exam: Exam, device: torch.device) -> Retrieval:
    """What a row's checkpoint finds, compared as its card says.

    Its embeddings of the exam's walks are kept beside it, for the next table and other protocols.
    """
    card = read_card(folder / CHECKPOINT)
    walks, mirror = exam.walks, exam.rule.mirror
    name = f"{card.digest[:12]}-{walks.content_hash[:12]}-{len(walks)}"
    kept, both = (folder / "embeddings" / f"{name}{end}.npz" for end in ("", "-mirrored"))
    if mirror or both.exists():  # which has them as they are, too
        kept = both
    if not kept.exists():
        encoder = Encoder.open(folder / CHECKPOINT, device=str(device), precision="float32")
        made = embedded_by(encoder, walks, mirror=mirror)
        arrays: dict[str, Any] = {"embeddings": made.embeddings}
        if made.mirrored is not None:
            arrays["mirrored"] = made.mirrored
        kept.parent.mkdir(exist_ok=True)
        whole = kept.with_suffix(".part.npz")
        np.savez(whole, allow_pickle=False, **arrays)
        whole.rename(kept)
    with np.load(kept) as found:
        method = EmbeddedSequences(
            card.name,
            found["embeddings"],
            card.metric,
            found["mirrored"] if mirror else None,
            digest=card.digest,
        )
    return exam.rule.run(labels_of(walks), method)


def table_of(
    found: Mapping[str, Sequence[Retrieval]], resampling: Resampling
) -> dict[str, dict[str, object]]:
    """Each row's rank-1, mean over seeds, and its gains over no teacher, GaitKD and what ships."""
    draws = {name: over_seeds(retrievals, resampling) for name, retrievals in found.items()}
    rows: dict[str, dict[str, object]] = {}
    for name, (values, replicates) in draws.items():
        mean = float(np.mean(values))
        rows[name] = {
            "rank1": shown(percentile_estimate(mean, replicates, resampling.confidence)),
            "seeds": [round(100 * value, 1) for value in values],
        }
        for key, other in AGAINST.items():
            if other in draws and other != name:
                theirs, their_replicates = draws[other]
                gain = percentile_estimate(
                    mean - float(np.mean(theirs)),
                    replicates - their_replicates,
                    resampling.confidence,
                )
                rows[name][key] = shown(gain)
    return rows


def costs_of(
    runner: Runner, recipes: Mapping[str, Recipe], seeds: Sequence[int]
) -> dict[str, object]:
    """Of each row the student's time of a step against no teacher's, and what a step keeps.

    Times of rows that ran in another loop, when the machine had other things to do, say nothing.
    """
    found: dict[str, dict[str, float]] = {}
    for name in recipes:
        cards = [read_card(runner.folder(name, seed) / CHECKPOINT).metrics for seed in seeds]
        if all("learning_ms" in metrics for metrics in cards):
            found[name] = {
                key: float(np.mean([float(str(metrics[key])) for metrics in cards]))
                for key in ("learning_ms", "kept_mb")
            }
    alone = found.get(ALONE, {}).get("learning_ms")
    return {
        name: {
            "step, relative": round(cost["learning_ms"] / alone, 2)
            if alone and recipes[name].data == recipes[ALONE].data
            else None,
            "kept_mb": round(cost["kept_mb"], 1),
        }
        for name, cost in found.items()
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The table, best gain on validation first."""
    exams: Mapping[str, Any] = result["exams"]
    chosen = exams["validation"]["rows"]
    order = sorted(chosen, key=lambda name: -chosen[name]["rank1"][0])
    head = "| rank-1 %, gain over no teacher [95 %] | " + " | ".join(
        f"{name} | gain" for name in exams
    )
    head += f" | gain over {SHIPS}, validation | step | kept, MB |"
    lines = [head, "|---" * (2 * len(exams) + 4) + "|"]
    for name in order:
        cells = [name]
        for exam in exams.values():
            row = exam["rows"][name]
            cells += [f"{row['rank1'][0]:.1f}", _interval(row.get("gain over no teacher"))]
        cells.append(_interval(chosen[name].get("gain over what ships")))
        cost = result["costs"].get(name, {})
        cells += [str(cost.get("step, relative") or ""), str(cost.get("kept_mb", ""))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(gain: Sequence[float] | None) -> str:
    if not gain:
        return ""
    value, *bounds = gain
    if not bounds:
        return f"{value:+.1f}"
    return f"{value:+.1f} [{bounds[0]:+.1f}, {bounds[1]:+.1f}]".replace("-", "−")


def figure(result: Mapping[str, Any]) -> str:
    """An SVG: each row's gain over no teacher with its interval, on validation and on each test."""
    exams: Mapping[str, Any] = result["exams"]
    chosen = exams["validation"]["rows"]
    order = sorted(
        (name for name in chosen if name != ALONE), key=lambda name: -chosen[name]["rank1"][0]
    )
    gains = [
        (index, colour, name, exam["rows"][name]["gain over no teacher"])
        for exam, colour, index in zip(exams.values(), COLOURS, range(len(exams)), strict=False)
        for name in order
    ]
    bounds = [bound for *_, gain in gains for bound in gain]
    low, high = float(min(*bounds, 0.0)), float(max(*bounds, 0.0))
    left, wide, tall = 250, 460, 10 + 6 * len(exams)

    def across(value: float) -> float:
        return left + wide * (value - low) / max(high - low, 1e-9)

    height = tall * len(order) + 50
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 30}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<line x1="{across(0):.1f}" x2="{across(0):.1f}" y1="24" y2="{height - 20}" '
        'stroke="black"/>',
    ]
    place = 10
    for name, colour in zip(exams, COLOURS, strict=False):
        drawn.append(f'<text x="{place}" y="14" fill="{colour}">{name}</text>')
        place += 20 + 7 * len(name)
    for line, name in enumerate(order):
        drawn.append(
            f'<text x="{left - 10}" y="{30 + tall * line + tall / 2}" text-anchor="end">'
            f"{name}</text>"
        )
    for index, colour, name, gain in gains:
        y = 30 + tall * order.index(name) + 6 * index
        value, *interval = gain
        if interval:
            drawn.append(
                f'<line x1="{across(interval[0]):.1f}" x2="{across(interval[1]):.1f}" y1="{y}" '
                f'y2="{y}" stroke="{colour}" stroke-width="2"/>'
            )
        drawn.append(f'<circle cx="{across(value):.1f}" cy="{y}" r="3" fill="{colour}"/>')
    for tick in sorted({low, 0.0, high}):
        x = across(tick)
        drawn += [f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{tick:+.1f}</text>']
    return "\n".join([*drawn, "</svg>\n"])


def publish_page(result: Mapping[str, Any], page: Path) -> None:
    """Put table and figure into a page, between its two marks.

    Raises:
        ValueError: the page lacks a mark.
    """
    text = page.read_text(encoding="utf-8")
    begin, end = "<!-- benchmarks.methods: begin -->\n", "<!-- benchmarks.methods: end -->"
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no place for the table: {begin.strip()} … {end}")
    drawing = page.parent / "images" / "methods.svg"
    drawing.write_text(figure(result), encoding="utf-8")
    changed = " ".join(f"`{setting}`" for setting in result["settings"])
    people = ", ".join(f"{name} {exam['people']}" for name, exam in result["exams"].items())
    about = (
        f"{result['steps']} steps of {result['sequences a step']} sequences; seeds "
        f"{', '.join(map(str, result['seeds']))}; size `{result['size']}`"
        f"{', changed by ' if changed else ''}{changed}; people: {people}; "
        f"{len(result['teachers'])} teachers; commit `{result['commit']}`.\n"
    )
    parts = [
        text[: text.index(begin) + len(begin)],
        about,
        "\n![gain over no teacher, by method](images/methods.svg)\n\n",
        markdown(result),
        "\n",
        text[text.index(end) :],
    ]
    page.write_text("".join(parts), encoding="utf-8")


def results(
    runner: Runner,
    names: Sequence[str],
    seeds: Sequence[int],
    exams: Mapping[str, Exam],
    device: torch.device,
) -> Iterator[tuple[str, dict[str, object]]]:
    """The table of each exam."""
    resampling = Resampling()
    for label, exam in exams.items():
        found = {
            name: [judged(runner.folder(name, seed), exam, device) for seed in seeds]
            for name in names
        }
        yield (
            label,
            {
                "dataset": exam.walks.content_hash,
                "protocol": exam.protocol,
                "people": len(exam.walks.subjects),
                "rows": table_of(found, resampling),
            },
        )


def main() -> None:
    """Train what is missing, judge everything, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, action="append", required=True)
    parser.add_argument("--validation", type=lambda text: Exam.parse(f"validation={text}"))
    parser.add_argument("--test", nargs="*", type=Exam.parse, default=[])
    parser.add_argument("--size", choices=list(SIZES), default="night")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--page", type=Path, help="Whose table and figure are replaced.")
    arguments = parser.parse_args()
    if arguments.validation is None:
        parser.error("--validation PACK:PROTOCOL is what choices are made by")
    group = join()
    runner = Runner(arguments.out, group)
    rows = [row for row in arguments.rows if ROWS[row].teachers <= len(arguments.teacher)]
    few = f"takes two teachers, {len(arguments.teacher)} given"
    runner.left_out.update({row: few for row in arguments.rows if row not in rows})
    recipes: dict[str, Recipe] = {}
    for seed in arguments.seeds:
        recipes = {
            name: recipe_of(
                name, seed, arguments.size, arguments.set, arguments.dataset, arguments.teacher
            )
            for name in rows
        }
        runner.train(recipes, seed)
    names = [name for name in rows if name not in runner.left_out]
    exams = {exam.name: exam for exam in (arguments.validation, *arguments.test)}
    first = recipes[names[0]]
    result = {
        "machine": machine.describe(),
        "commit": provenance.commit(),
        "size": arguments.size,
        "settings": arguments.set,
        "dataset": Pack.open(arguments.dataset).content_hash,
        "steps": first.total_steps,
        "sequences a step": first.batch.subjects * first.batch.sequences,
        "teachers": [read_card(teacher).digest for teacher in arguments.teacher],
        "seeds": arguments.seeds,
        "left out": runner.left_out,
        "costs": costs_of(runner, {name: recipes[name] for name in names}, arguments.seeds),
        "exams": dict(results(runner, names, arguments.seeds, exams, group.device)),
    }
    machine.publish(result, arguments.results)
    if arguments.page is not None:
        publish_page(result, arguments.page)


if __name__ == "__main__":
    main()

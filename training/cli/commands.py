"""The command line of training: a run is a recipe and a folder.

Exit status: 0 done, 2 bad input, 143 stopped by SIGTERM after saving, 1 anything else. Nothing
heavy is imported before a command needs it, so that `validate` answers quickly.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from training.process.stopping import EXIT_STATUS, Stopped, StopRequest
from training.recipe import Problem, RecipeError, load, missing_files, require_teachers

if TYPE_CHECKING:
    from training.process.events import Reporter
    from training.recipe import Recipe

BAD_INPUT = 2

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Offline training and distillation of gait networks.",
)

RecipeName = Annotated[str, typer.Argument(help="A TOML file, or the name of a shipped recipe.")]
Out = Annotated[Path, typer.Option(help="Folder for state, logs and checkpoint.")]
Dataset = Annotated[Path | None, typer.Option(help="Packed dataset; replaces data.dataset.")]
Teachers = Annotated[
    list[Path] | None,
    typer.Option("--teacher", help="Checkpoint of a teacher; may be repeated; replaces teachers."),
]
StudentCheckpoint = Annotated[
    Path | None,
    typer.Option("--student", help="Checkpoint to start from: its network, its weights."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Changes the recipe; the value is TOML."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]


class Source(StrEnum):
    """What a dataset is packed from."""

    auto = "auto"
    pickles = "pickles"
    images = "images"
    walks = "walks"
    gallery = "gallery"
    ou_mvlp = "ou-mvlp"


@app.command()
def train(
    recipe: RecipeName,
    out: Out,
    dataset: Dataset = None,
    student: StudentCheckpoint = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train a network from labelled walks alone."""
    with _reporting(as_json) as (reporter, stop):
        loaded = load(recipe, settings=settings or (), dataset=dataset, student=student)
        require_teachers(loaded, wanted=False)
        _run(loaded, recipe, out, reporter, stop)


@app.command()
def distill(
    recipe: RecipeName,
    out: Out,
    dataset: Dataset = None,
    teacher: Teachers = None,
    student: StudentCheckpoint = None,
    settings: Settings = None,
    prototypes: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps teachers' prototypes; OUT/prototypes if not given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a student from labelled walks and one or more frozen teachers."""
    with _reporting(as_json) as (reporter, stop):
        loaded = load(
            recipe,
            settings=settings or (),
            dataset=dataset,
            teachers=teacher or (),
            student=student,
        )
        require_teachers(loaded, wanted=True)
        _run(loaded, recipe, out, reporter, stop, prototypes)


@app.command()
def validate(
    recipe: RecipeName,
    dataset: Dataset = None,
    teacher: Teachers = None,
    student: StudentCheckpoint = None,
    settings: Settings = None,
    command: Annotated[
        Literal["train", "distill"] | None,
        typer.Option("--for", help="Also whether the recipe is one for this command."),
    ] = None,
) -> None:
    """Check a recipe, and that the files it names exist, without starting anything."""
    problems: tuple[Problem, ...] = ()
    try:
        loaded = load(
            recipe,
            settings=settings or (),
            dataset=dataset,
            teachers=teacher or (),
            student=student,
        )
        problems = missing_files(loaded)
        if command is not None:
            require_teachers(loaded, wanted=command == "distill")
        from training.run.checking import recipe_problems  # slow, so only for what is right so far

        problems += recipe_problems(loaded)
    except RecipeError as error:
        problems += error.problems
    typer.echo(json.dumps({"errors": [vars(problem) for problem in problems]}))
    if problems:
        raise typer.Exit(BAD_INPUT)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    dataset: Annotated[Path, typer.Option(help="Packed dataset.")],
    protocol: Annotated[
        str | None, typer.Option(help="Name of a protocol; cross-view if not given.")
    ] = None,
    enrolled: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION,…",
            help="Instead of a protocol: conditions that are enrolled, as 'nm-0[1-4]'; may be "
            "repeated.",
        ),
    ] = None,
    asked: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]CONDITION,…",
            help="Conditions that are asked of them, reported as NAME; may be repeated.",
        ),
    ] = None,
    apart: Annotated[
        float,
        typer.Option(min=0, max=180, help="Degrees up to which views count as the same view."),
    ] = 0,
    against: Annotated[
        list[Path] | None, typer.Option(help="Another checkpoint to compare with; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the whole result, as JSON.")] = None,
    mirror: Annotated[
        bool | None,
        typer.Option(help="Try every probe mirrored as well; as the protocol does if not given."),
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option(
            help="Add the gait energy image and the untrained network; as the protocol does."
        ),
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="To embed on.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of intervals and untrained network.")] = 0,
    as_json: Json = False,
) -> None:
    """Judge a checkpoint on a packed dataset by a protocol."""
    with _reporting(as_json) as (reporter, _):
        from training.cli.evaluating import chosen_protocol, evaluate_with_events

        evaluate_with_events(
            checkpoint,
            dataset,
            chosen_protocol(protocol, enrolled or [], asked or [], apart),
            against or [],
            out,
            reporter,
            tables=not as_json,
            mirror=mirror,
            baselines=baselines,
            device=device,
            seed=seed,
        )


@app.command()
def pack(
    source: Annotated[
        Path, typer.Argument(help="A tree of pickles, images or walks, or an exported gallery.")
    ],
    out: Annotated[Path, typer.Option(help="The .pack folder to make.")],
    format: Annotated[Source, typer.Option(help="What SOURCE is.")] = Source.auto,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="JSON of TRAIN_SET and TEST_SET, to go into the pack; or casia-b, casia-e, ccpg, "
            "grew or ou-mvlp.",
        ),
    ] = None,
    silhouettes: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB",
            help="Names of the files that hold silhouettes, as '*-aligned-sils.pkl'; where a walk "
            "has others beside them.",
        ),
    ] = None,
    pose_maps: Annotated[
        str,
        typer.Option(
            metavar="auto|none|GLOB|FOLDER",
            help="Names of the files that hold SkeletonGait's heat maps, or a folder that holds "
            "them as SOURCE holds silhouettes; auto: '*heatmap*', if there are any.",
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that prepare raw frames; one a core if not given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Pack a dataset into one memory-mapped file."""
    with _reporting(as_json) as (reporter, _):
        from training.cli.packing import pack_with_events

        pack_with_events(
            source,
            out,
            format.value,
            reporter,
            partition=partition,
            silhouettes=silhouettes,
            pose_maps=pose_maps,
            workers=workers,
        )


@app.command()
def discriminant(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a trained checkpoint.")],
    dataset: Annotated[
        Path, typer.Option(help="Packed walks of many people, as those trained on.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint to make.")],
    channels: Annotated[int, typer.Option(min=1, help="Of an embedding's part.")] = 32,
    shrinkage: Annotated[
        float, typer.Option(min=0.0, help="How little the variance seen within people is trusted.")
    ] = 0.01,
    mixing: Annotated[
        bool,
        typer.Option(help="Let parts explain one another; takes many people."),
    ] = True,
    mixing_shrinkage: Annotated[
        float, typer.Option(min=0.0, help="The same of all parts together.")
    ] = 0.3,
    again: Annotated[
        bool,
        typer.Option("--again", help="Keep the head; let its parts explain one another once more."),
    ] = False,
    sequences: Annotated[
        int | None, typer.Option(min=2, help="Only about so many walks, of whole people.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="To embed on.")] = "auto",
    as_json: Json = False,
) -> None:
    """Shorten embeddings to the directions that tell people apart (linear discriminants)."""
    with _reporting(as_json) as (reporter, _):
        from training.derive.refinement import refine, remix

        if again:
            remix(
                checkpoint,
                dataset,
                out,
                reporter,
                mixing_shrinkage=mixing_shrinkage,
                sequences=sequences,
                device=device,
            )
            return
        refine(
            checkpoint,
            dataset,
            out,
            reporter,
            channels=channels,
            shrinkage=shrinkage,
            mixing_shrinkage=mixing_shrinkage if mixing else None,
            sequences=sequences,
            device=device,
        )


@app.command()
def grow(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a trained checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint to make.")],
    layers: Annotated[
        tuple[int, int, int, int], typer.Option(help="Blocks of each of the four stages.")
    ] = (1, 4, 4, 1),
    mode: Annotated[
        Literal["2d", "p3d"], typer.Option(help="Whether new convolutions see time as well.")
    ] = "p3d",
    as_json: Json = False,
) -> None:
    """Make a trained network deeper without changing what it computes, to train it further."""
    with _reporting(as_json) as (reporter, _):
        from training.derive.enlarge import grow as grow_checkpoint

        grow_checkpoint(checkpoint, out, reporter, layers=layers, mode=mode)


@app.command()
def widen(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a trained checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint to make.")],
    times: Annotated[int, typer.Option(help="Channels there are to be for each one.", min=2)] = 2,
    as_json: Json = False,
) -> None:
    """Make a trained network wider without changing what it computes, to train it further."""
    with _reporting(as_json) as (reporter, _):
        from training.derive.enlarge import widen as widen_checkpoint

        widen_checkpoint(checkpoint, out, reporter, times=times)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a trained checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint to make.")],
    name: Annotated[
        str | None, typer.Option(help="Name on the new card; the old one if not given.")
    ] = None,
    keep_classifier: Annotated[
        bool, typer.Option(help="Keep the training identities' classifier.")
    ] = False,
    full: Annotated[bool, typer.Option(help="Keep float32 instead of half precision.")] = False,
    metric: Annotated[
        Literal["cosine", "euclidean"] | None,
        typer.Option(help="How embeddings are compared; as the card says if not given."),
    ] = None,
    embedding_source: Annotated[
        Literal["embedding", "neck"] | None,
        typer.Option(
            help="What is compared: before or after the neck; as configured if not given."
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Frames that the maximum over time is taken of: longer walks are the mean of "
            "such windows; as configured if not given.",
            min=1,
        ),
    ] = None,
    quantise: Annotated[
        Literal["int8"] | None,
        typer.Option(help="Compute in whole numbers of 8 bits, for CPUs; takes --dataset."),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="A .pack of walks to quantise for; its training walks.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="What `evaluate --out` wrote: figures for the card, and from the first file that "
            "has them the thresholds; may be repeated."
        ),
    ] = None,
    decides_at: Annotated[
        tuple[float, int] | None,
        typer.Option(
            help="FPIR and enrolled subjects of the threshold that decides; 0.01 100 if not given."
        ),
    ] = None,
    notes: Annotated[str | None, typer.Option(help="For the card: weaknesses, terms.")] = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint for use: no classifier, half precision, a card that says how good it is."""
    with _reporting(as_json) as (reporter, _):
        if (quantise is None) != (dataset is None):
            raise RecipeError([Problem("--quantise", "and --dataset go together")])
        from training.derive.export import export_checkpoint

        export_checkpoint(
            checkpoint,
            out,
            reporter,
            name=name,
            keep_classifier=keep_classifier,
            half=not full,
            metric=metric,
            embedding_source=embedding_source,
            window=window,
            calibration=dataset,
            evaluations=evaluation or (),
            decides_at=decides_at,
            notes=notes,
        )


@app.command()
def render(
    recipe: Annotated[
        Path, typer.Argument(help="A rendering recipe, or the name of a shipped one.")
    ],
    out: Annotated[Path, typer.Option(help="The .pack folder to make.")],
    mocap: Annotated[Path | None, typer.Option(help="Folder of motion-capture recordings.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core if not given.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many identities.")] = None,
    pose_maps: Annotated[
        bool, typer.Option("--pose-maps", help="Draw limbs and joints as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Render walkers into a packed dataset."""
    with _reporting(as_json):
        from training.rendering.command import render as render_walkers

        try:
            render_walkers(
                recipe,
                out,
                mocap=mocap,
                workers=workers,
                limit=limit,
                json=as_json,
                pose_maps=pose_maps,
            )
        except (FileNotFoundError, ValueError) as error:
            raise RecipeError([Problem("", str(error))]) from error


def _run(
    recipe: Recipe,
    name_or_path: str,
    out: Path,
    reporter: Reporter,
    stop: StopRequest,
    prototypes: Path | None = None,
) -> None:
    missing = missing_files(recipe)
    if missing:
        raise RecipeError(missing)
    from training.run.loop import run_recipe

    kept = prototypes or out / "prototypes"
    run_recipe(recipe, Path(name_or_path).stem, out, reporter, stop, kept)


@contextmanager
def _reporting(as_json: bool) -> Iterator[tuple[Any, StopRequest]]:
    """Events to the right place, errors to the right exit status."""
    from training.process.events import ConsoleReporter, Failed, JsonReporter, SilentReporter

    stop = StopRequest()
    stop.install()
    reporter: Reporter
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks for all
        reporter = SilentReporter()
    else:
        reporter = JsonReporter() if as_json else ConsoleReporter()
    try:
        with reporter:
            yield reporter, stop
    except Stopped:
        raise typer.Exit(EXIT_STATUS) from None
    except Exception as error:
        from training.process.failures import explain

        failure = explain(error)
        reporter.report(Failed(failure.reason))
        if failure.unexpected:
            traceback.print_exception(error, file=sys.stderr)
        raise typer.Exit(BAD_INPUT if failure.bad_input else 1) from None

"""Evaluating a checkpoint, with the events of every long command."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from training.evaluation import Resampling, console_tables, evaluate_checkpoint, own_protocol
from training.evaluation.protocols import NamedProtocol
from training.process.events import Done, Evaluated, Progressed, Reporter, Started
from training.recipe import Problem, RecipeError

_REPORTS = 100
_WIDE = 500  # columns, where nobody looks: a file gets each line whole


def chosen_protocol(
    protocol: str | None, enrolled: Sequence[str], asked: Sequence[str], apart: float
) -> str | NamedProtocol:
    """The protocol that the command line asks for.

    Args:
        protocol: a name in `PROTOCOLS`.
        enrolled: patterns of conditions, several in one text separated by commas.
        asked: the same, each text under a name of its own if it begins with `NAME=`.
        apart: see `own_protocol`.

    Raises:
        RecipeError: a name and conditions are given, or only one kind of conditions.
    """
    if not (enrolled or asked):
        if apart:
            raise RecipeError([Problem("--apart", "belongs to --enrolled and --asked")])
        return protocol or "cross-view"
    if protocol is not None:
        reason = "either a protocol, or conditions that are enrolled and asked"
        raise RecipeError([Problem("--protocol", reason)])
    questions: dict[str, list[str]] = {}
    for text in asked:
        name, equals, patterns = text.partition("=")
        questions.setdefault(name, []).extend(_patterns(patterns if equals else name))
    for option, given in (("--enrolled", enrolled), ("--asked", asked)):
        if not given or not all(_patterns(text.rpartition("=")[2]) for text in given):
            raise RecipeError([Problem(option, "name a condition; --enrolled and --asked do both")])
    return own_protocol([name for text in enrolled for name in _patterns(text)], questions, apart)


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def evaluate_with_events(
    checkpoint: Path,
    dataset: Path,
    protocol: str | NamedProtocol,
    against: Sequence[Path],
    out: Path | None,
    reporter: Reporter,
    *,
    tables: bool,
    mirror: bool | None = None,
    baselines: bool | None = None,
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Evaluate and report.

    Args:
        checkpoint: folder of the checkpoint.
        dataset: a packed dataset.
        protocol: a name in `PROTOCOLS`, or one of a person's own.
        against: other checkpoints to compare with.
        out: file for the whole result; None for none.
        reporter: told what happens.
        tables: print the result's tables on stdout.
        mirror: try every probe mirrored as well; the protocol's habit when None.
        baselines: add rows to read the others against; the protocol's habit when None.
        device: where networks run.
        seed: of the intervals and of the untrained network.

    Raises:
        ValueError: checkpoint, dataset or protocol cannot be used, see `evaluate_checkpoint`.
    """
    began = time.monotonic()
    started = False

    def report(done: int, total: int) -> None:
        nonlocal started
        if not started:
            reporter.report(Started(total_steps=total, step=0))
            started = True
        if done % max(1, total // _REPORTS) == 0 or done == total:
            pace = (time.monotonic() - began) / max(done, 1)
            reporter.report(Progressed(done, total, round(pace * (total - done), 1), {}))

    result = evaluate_checkpoint(
        checkpoint,
        dataset,
        protocol,
        device=device,
        mirror=mirror,
        baselines=baselines,
        against=against,
        resampling=Resampling(seed=seed),
        progress=report,
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(result.to_json() + "\n", encoding="utf-8")
    if tables:
        width = None if sys.stdout.isatty() else _WIDE
        Console(width=width).print(console_tables(result))
    metrics = result.metrics()
    reporter.report(Evaluated(metrics))
    reporter.report(Done(str(checkpoint), metrics))

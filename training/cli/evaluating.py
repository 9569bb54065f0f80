"""Evaluating a checkpoint, with the events of every long command."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from training.evaluation import PROTOCOLS, Resampling, console_tables, evaluate_checkpoint
from training.process.events import Done, Evaluated, Progressed, Reporter, Started
from training.recipe import Problem, RecipeError

_REPORTS = 100
_WIDE = 500  # columns, where nobody looks: a file gets each line whole


def evaluate_with_events(
    checkpoint: Path,
    dataset: Path,
    protocol: str,
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
        protocol: a name in `PROTOCOLS`.
        against: other checkpoints to compare with.
        out: file for the whole result; None for none.
        reporter: told what happens.
        tables: print the result's tables on stdout.
        mirror: try every probe mirrored as well; the protocol's habit when None.
        baselines: add rows to read the others against; the protocol's habit when None.
        device: where networks run.
        seed: of the intervals and of the untrained network.

    Raises:
        RecipeError: there is no such protocol.
        ValueError: checkpoint or dataset cannot be used, see `evaluate_checkpoint`.
    """
    if protocol not in PROTOCOLS:
        known = ", ".join(sorted(PROTOCOLS))
        raise RecipeError([Problem("--protocol", f"there is no {protocol!r}; known: {known}")])
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

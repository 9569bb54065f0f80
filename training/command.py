"""What `train` and `distill` do once the recipe has been read: torch is needed from here."""

from __future__ import annotations

from pathlib import Path

from training.distributed import join
from training.events import Reporter
from training.loop import run
from training.preparation import prepare
from training.recipe import Recipe
from training.stopping import StopRequest


def carry_out(
    recipe: Recipe,
    name: str,
    out: Path,
    reporter: Reporter,
    stop: StopRequest,
    prototypes: Path,
) -> None:
    """Prepare and run, in this process's place among those of torchrun, if it started them.

    Args:
        recipe: read and checked.
        name: of the checkpoint.
        out: the run's folder.
        reporter: told what happens.
        stop: SIGTERM.
        prototypes: folder that keeps those of teachers, for a run that goes on.
    """
    group = join()
    try:
        kept = prototypes if group.leads else None
        preparation = prepare(recipe, group.device, reporter=reporter, kept=kept)
        run(recipe, out, preparation, name=name, reporter=reporter, stop=stop, group=group)
    finally:
        group.close()

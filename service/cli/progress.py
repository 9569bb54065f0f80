"""Progress bars in a terminal: of a job, of a transfer, of any counted work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from service.client import Client, Job


@contextmanager
def bar(
    description: str,
    total: int | None = None,
    *columns: ProgressColumn,
    console: Console | None = None,
) -> Iterator[Callable[..., None]]:
    """Show a bar, on stderr unless `console` is given; the total may be unknown.

    Yields `rich.progress.Progress.update` of the bar: it takes `completed`, `total`, `advance`,
    `description` and fields of columns.
    """
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *(columns or (MofNCompleteColumn(), TimeRemainingColumn())),
        console=console or Console(stderr=True),
    )
    with progress:
        yield partial(progress.update, progress.add_task(description, total=total, figures=""))


def follow(client: Client, job_id: str, *, console: Console | None = None) -> Job:
    """Show a job's progress until it has ended, and return it."""
    columns = (
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with bar("queued", None, *columns, console=console) as update:
        for event in client.follow(job_id):
            data = event.data
            if event.kind == "status":
                update(description=data["status"])
            if event.kind in ("start", "progress"):
                update(completed=data["step"], total=data["total_steps"])
            if event.kind in ("progress", "evaluation"):
                update(figures=figures(data["metrics"], most=2))
    return client.job(job_id)


@contextmanager
def transfer(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar over bytes; yields a function that takes how many were transferred."""
    columns = DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn()
    with bar(description, total, *columns) as update:
        yield lambda count: update(completed=count)


def figures(metrics: dict[str, object], *, most: int | None = None) -> str:
    """Return metrics in one line, such as `loss 1.234  rank1 0.87`."""
    shown = [
        f"{name} {value:.4g}"
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return "  ".join(shown[:most])

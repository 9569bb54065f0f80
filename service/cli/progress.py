"""Progress as a bar in a terminal: of a job, of a file that goes over the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from service.client import Client, Job


def follow(client: Client, job_id: str, *, console: Console | None = None) -> Job:
    """Draw the job's bar from its events until it has ended; returns how it ended."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("queued", total=None, figures="")
        for event in client.follow(job_id):
            match event.kind:
                case "status":
                    bar.update(task, description=event.data["status"])
                case "start":
                    bar.update(task, completed=event.data["step"], total=event.data["total_steps"])
                case "progress":
                    bar.update(
                        task,
                        completed=event.data["step"],
                        total=event.data["total_steps"],
                        figures=figures(event.data["metrics"], most=2),
                    )
                case "evaluation":
                    bar.update(task, figures=figures(event.data["metrics"], most=2))
    return client.job(job_id)


@contextmanager
def transfer(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar over bytes on stderr; the total may be unknown. Yields what to tell how many went."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.update(task, completed=count)


def figures(metrics: dict[str, object], *, most: int | None = None) -> str:
    """Metrics in one line: `loss 1.234  rank1 0.87`."""
    shown = [
        f"{name} {value:.4g}"
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return "  ".join(shown[:most])

"""A job's progress as a bar in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
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


def figures(metrics: dict[str, object], *, most: int | None = None) -> str:
    """Metrics in one line: `loss 1.234  rank1 0.87`."""
    shown = [
        f"{name} {value:.4g}"
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return "  ".join(shown[:most])

"""Events of a run, as JSON lines for programs or a progress bar for people."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Started:
    """The run begins, or goes on from `step`."""

    total_steps: int
    step: int
    event: str = "start"


@dataclass(frozen=True)
class Progressed:
    """`step` of `total_steps` are done; metrics are means since the last report.

    `eta_s` is in seconds, None if not known yet. Before the first step of a distillation the
    only metric may be `prototypes`, the share of the walks that they are made of.
    """

    step: int
    total_steps: int
    eta_s: float | None
    metrics: Metrics
    event: str = "progress"


@dataclass(frozen=True)
class Evaluated:
    """What the network reached on held-out walks."""

    metrics: Metrics
    event: str = "evaluation"


@dataclass(frozen=True)
class Done:
    """The run is over and its result lies at `checkpoint`."""

    checkpoint: str
    metrics: Metrics
    event: str = "done"


@dataclass(frozen=True)
class Packed:
    """A dataset has been made and lies at `dataset`."""

    dataset: str
    metrics: Metrics
    event: str = "done"


@dataclass(frozen=True)
class Skipped:
    """Something in a dataset that is not packed: a file or folder, and one sentence why."""

    name: str
    reason: str
    event: str = "skipped"


@dataclass(frozen=True)
class Failed:
    """The run cannot go on; one sentence says why."""

    reason: str
    event: str = "failed"


Event = Started | Progressed | Evaluated | Done | Packed | Skipped | Failed


class Reporter(Protocol):
    """Takes events; a context manager, because a progress bar has an end."""

    def report(self, event: Event) -> None:
        """Tell one event."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class JsonReporter:
    """One JSON object a line, flushed at once, so that a reader of the pipe follows the run."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def report(self, event: Event) -> None:
        """Write the event's line."""
        content = dataclasses.asdict(event)
        line = {"event": content.pop("event"), **content}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class ConsoleReporter:
    """A progress bar on stderr, or plain lines where stderr is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def report(self, event: Event) -> None:
        """Move the bar or print a line."""
        match event:
            case Started():
                bar = self._bar(event.total_steps)
                self._progress.update(bar, completed=event.step, description="")
                if event.step:
                    self._say(f"resumed at step {event.step} of {event.total_steps}")
            case Progressed():
                self._progress.update(
                    self._bar(event.total_steps),
                    completed=event.step,
                    description=_brief(event.metrics),
                )
                if not self._console.is_terminal:
                    self._say(f"step {event.step}/{event.total_steps}  {_brief(event.metrics)}")
            case Evaluated():
                self._say(f"evaluation: {_brief(event.metrics)}")
            case Done():
                self._say(f"checkpoint: {event.checkpoint}  {_brief(event.metrics)}".rstrip())
            case Packed():
                self._say(f"dataset: {event.dataset}  {_brief(event.metrics)}")
            case Skipped():
                self._say(f"skipped: {event.name}: {event.reason}")
            case Failed():
                self._say(f"failed: {event.reason}", style="red")

    def _bar(self, total: int) -> TaskID:
        if self._task is None:
            self._task = self._progress.add_task("", total=total)
        return self._task

    def _say(self, text: str, style: str | None = None) -> None:
        # Names of files and keys may look like markup or steer a terminal; a line stays one line.
        plain = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", text)
        self._console.print(plain, style=style, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class SilentReporter:
    """Drops all events: the reporter of every process but the first."""

    def report(self, event: Event) -> None:
        """Drop the event."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


def _brief(metrics: Metrics) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())

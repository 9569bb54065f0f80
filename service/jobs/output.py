"""What a child process prints: its events go to the database, everything else to the job's log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from service.jobs.events import Failed, Progress, RunEvent, parse
from service.jobs.leases import LeaseKeeper

_STDOUT = "stdout: "  # marks lines of standard output in a job's log
_FAILED = "failed: "  # by the training program before its reason, and by us before every reason
_LONGEST = 400
_TAIL_BYTES = 16 * 1024
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PATHS = re.compile(r"(?<![\w.:/])(?:~|\.{1,2})?(?:/[^\s/:'\",;()]+)+/?")


class ChildOutput:
    """Records a child's events and logs its other lines."""

    def __init__(self, keeper: LeaseKeeper, log: IO[bytes]) -> None:
        self._keeper = keeper
        self._log = log
        self._unrecorded: list[RunEvent] = []
        self.failure: str | None = None  # why the child itself says that it failed

    def read(self, lines: Sequence[str]) -> None:
        """Find the events among `lines`; other lines go to the job's log."""
        for line in lines:
            event = parse(line)
            if event is None:
                self._log.write(f"{_STDOUT}{line}\n".encode(errors="replace"))
                continue
            if isinstance(event, Failed):
                self.failure = event.reason
                continue  # becomes the job's error
            newest = self._unrecorded[-1] if self._unrecorded else None
            if isinstance(event, Progress) and isinstance(newest, Progress):
                self._unrecorded.pop()  # only the newest of a burst: bounds a fast run's history
            self._unrecorded.append(event)
        self._log.flush()

    def send(self) -> None:
        """Record what was read; after an exception it may be called again."""
        if self._unrecorded:
            self._keeper.record(self._unrecorded)
            self._unrecorded = []


def public_reason(text: str) -> str:
    """Make a child's text fit for a client: one line, no paths, no control characters."""
    text = _ESCAPES.sub("", text)
    text = _PATHS.sub(lambda match: match.group().rstrip("/").rsplit("/", 1)[-1], text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def last_error_line(log: Path, begin: int) -> str:
    """The last line that a child wrote to standard error, from byte `begin` of the job's log."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(begin, size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.strip() and not line.startswith(_STDOUT)]
    return errors[-1].removeprefix(_FAILED) if errors else ""

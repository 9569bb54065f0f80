"""Why a job failed, in words that a client may see."""

from __future__ import annotations

import re
from pathlib import Path

OUTPUT = "stdout: "  # marks lines of standard output in a job's log
_SAID = "failed: "  # by the training program before its reason, and by us before every reason
_LONGEST = 400
_TAIL_BYTES = 16 * 1024
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PATHS = re.compile(r"(?<![\w.:/])(?:~|\.{1,2})?(?:/[^\s/:'\",;()]+)+/?")


def plain(text: str) -> str:
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
    errors = [line for line in lines if line.strip() and not line.startswith(OUTPUT)]
    return errors[-1].removeprefix(_SAID) if errors else ""

"""What commands that jobs run tell their worker, on stdout as a training does."""

from __future__ import annotations

import json
from typing import Any

import typer


def tell(**event: Any) -> None:
    """One event."""
    typer.echo(json.dumps(event))


def tell_steps(done: int, total: int) -> None:
    """How far it is."""
    tell(event="progress", step=done, total_steps=total)

"""Which jobs a worker takes: a short one must not wait for hours behind a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lane:
    """The jobs of some types (`only`), or of all but those."""

    name: str
    kinds: frozenset[str]
    only: bool


_LONG = frozenset({"distill", "evaluate"})

LANES = (Lane("long", _LONG, only=True), Lane("short", _LONG, only=False))
"""Every type of job is in one of them."""

"""What a worker has, and what a job needs: amounts by name, such as 1 `gpu` and 64 GiB of `memory`.

Three names mean something to the program: a worker finds out by itself how many `cpu` and `gpu` its
process may use, and how many GiB of `memory` there are. Any other name is an operator's own.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

Labels = Mapping[str, float]

LABEL_NAME = r"^[a-z][a-z0-9_-]{0,31}$"
_GIB = 2**30
_MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of cgroups, version 2 and 1


def parse(texts: Iterable[str]) -> dict[str, float]:
    """Read labels as `gpu` (one of it) or `memory=64`; raises `ValueError`."""
    labels = {}
    for text in texts:
        name, equals, amount = text.strip().partition("=")
        if not re.fullmatch(LABEL_NAME, name):
            raise ValueError(f"{text!r} is no label: write a name, or a name and an amount: gpu=2")
        try:
            labels[name] = float(amount) if equals else 1.0
        except ValueError:
            labels[name] = math.nan
        if not (math.isfinite(labels[name]) and labels[name] >= 0):
            raise ValueError(f"{text!r} is no label: the amount must be a number from 0 on")
    return labels


def detect(*, gpu: bool, cgroup: Path = Path("/sys/fs/cgroup")) -> dict[str, float]:
    """What this process may use: `cpu`, GiB of `memory`, and `gpu` unless it must do without."""
    import torch  # slow, and commands for people parse labels too

    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _MEMORY_LIMITS:
        try:
            limits.append(int((cgroup / name).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return {
        "cpu": float(len(os.sched_getaffinity(0))),
        "memory": round(min(limits) / _GIB, 1),
        "gpu": float(torch.cuda.device_count()) if gpu else 0.0,
    }


def fits(needs: Labels, has: Labels) -> bool:
    """Whether a worker has what a job needs."""
    return all(has.get(name, 0.0) >= amount for name, amount in needs.items())


def as_text(labels: Labels) -> str:
    """Labels as the database has them: alike ones are one text."""
    return json.dumps(dict(sorted(labels.items())), separators=(",", ":"))


def from_text(text: str) -> dict[str, float]:
    """What `as_text` wrote."""
    labels: dict[str, float] = json.loads(text)
    return labels


def in_words(labels: Labels) -> str:
    """Labels as they are given on the command line: `gpu=1 memory=64`."""
    return " ".join(f"{name}={amount:g}" for name, amount in sorted(labels.items()))

"""The bounds that a process gives itself before it reads a stranger's bytes."""

from __future__ import annotations

import math
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from models.silhouettes.budget import MEBIBYTE

SegmenterName = Literal["network", "background"]

FOR_FOOTAGE: Final = 2048 * MEBIBYTE
"""Addresses of the networks, their threads, and what is followed."""

THREADS: Final = 2
"""Of the networks; processor time is counted over all."""

ENVIRONMENT: Final = frozenset(
    {
        *("PATH", "PYTHONPATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH"),
        *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"),
    }
)
"""What such a process is told of its surroundings; no keys."""

_MOST_FILES = 64  # that are open: libraries load parts of themselves when they need them
_CPU_GRACE_S = 2  # the budget speaks first


def confine() -> None:
    """Give up what decoding does not need."""
    # Should memory run short all the same, the kernel is to end this process first; where it takes
    # no such wishes, the bounds below hold alone.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_FSIZE, 0)
    _bound(resource.RLIMIT_NOFILE, _MOST_FILES)


def _bound(which: int, bound: int) -> None:
    _, hard = resource.getrlimit(which)
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(which, (bound, bound))


def allow_memory(more: int) -> None:
    """Allow what is in use and so much more. Linux says what is; elsewhere only time counts."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = pages * resource.getpagesize() + more
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))


def allow_time(seconds: float) -> None:
    """Give what comes next its share of processor time; the kernel ends what takes more."""
    soft = math.ceil(time.process_time() + seconds) + _CPU_GRACE_S
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))

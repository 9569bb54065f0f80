"""How many threads of a processor a training step is shared out to."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def settle_threads(environment: MutableMapping[str, str]) -> None:
    """Say how OpenMP is to work, where nobody said so; before torch is loaded.

    Threads that spin while they wait for each other make a step several times slower as soon as
    anything else wants their core. OpenMP's own can be told to sleep; those of the bfloat16
    convolutions' gradients cannot, so one core of three or more is left to everything else, such
    as the service that the student is for.
    """
    cores = usable_cores()
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    environment.setdefault("OMP_NUM_THREADS", str(cores - 1 if cores > 2 else cores))


def usable_cores(quota: Path = CPU_QUOTA) -> int:
    """Cores that this process may use: those it is bound to, within its container's quota.

    Args:
        quota: file of cgroup v2 with the microseconds to be used in a period, or `max`, and the
            period.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    try:
        granted, period = quota.read_text().split()
    except (OSError, ValueError):  # no cgroup v2 here
        return cores
    return cores if granted == "max" else max(1, min(cores, int(granted) // int(period)))

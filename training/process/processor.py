"""Threads and numeric libraries: use the cores well, and compute alike on all processors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")
CPUINFO: Final = Path("/proc/cpuinfo")
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def configure_processor(environment: MutableMapping[str, str], cpuinfo: Path = CPUINFO) -> None:
    """Set defaults for OpenMP, OpenBLAS and OpenCV; call before any of them is loaded.

    Threads that spin while they wait for each other make a step several times slower as soon as
    anything else wants their core. OpenMP's own can be told to sleep; those of the bfloat16
    convolutions' gradients cannot, so one core of three or more is left to everything else, such
    as the service that the student is for.

    OpenBLAS, which numpy multiplies with, has a way of adding for each kind of processor, and
    their last digits differ: a few pixels of a rendered training set did. All that can are told to
    take one. So are the routines that OpenCV has for some processors only (IPP): it does without.

    Args:
        environment: of this process.
        cpuinfo: where the kernel tells what the processor can.
    """
    cores = usable_cores()
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    environment.setdefault("OMP_NUM_THREADS", str(cores - 1 if cores > 2 else cores))
    environment.setdefault("OPENCV_IPP", "disabled")
    environment.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # it warns of just that
    if cpuinfo.exists() and re.search(r"^flags\s*:.*\bavx2\b", cpuinfo.read_text(), re.MULTILINE):
        environment.setdefault("OPENBLAS_CORETYPE", "Haswell")


@contextmanager
def one_thread_each(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Within the block, processes that are started compute on one core each.

    A process for each core, with a thread for each core in every one, spend most of their time
    waiting for each other.
    """
    before = {name: environment.get(name) for name in _THREADS}
    environment.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del environment[name]
            else:
                environment[name] = value


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: those it is bound to, within its container's quota.

    Args:
        cgroup: where the kernel tells the quota, in microseconds of every period: version 2 in one
            file, version 1 in two.
    """
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            told = " ".join((cgroup / file).read_text() for file in files)
            granted, period = (int(number) for number in told.split())
        except (OSError, ValueError):  # the other version, no container, or "max"
            continue
        return max(1, min(cores, granted // period)) if granted > 0 else cores
    return cores

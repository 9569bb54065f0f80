import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]
import pytest

from service.jobs.queue import JobQueue
from service.jobs.supervisor import WorkerSupervisor
from tests.e2e.deployment import children, gone, until

FAKE_WORKER = Path(__file__).parent / "fake_worker.py"

# Writes its process id to a new file in argv[1] and waits to be ended.
WORKER = """
import os, pathlib, signal, sys, time
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = pathlib.Path(sys.argv[1]) / str(os.getpid())
path.touch()
time.sleep(60)
"""


def supervisor(folder: Path, mood: str = "well", grace_s: float = 5.0) -> WorkerSupervisor:
    return WorkerSupervisor([sys.executable, "-c", WORKER, str(folder), mood], {}, grace_s=grace_s)


def started(folder: Path, count: int) -> list[int]:
    until(lambda: len(list(folder.iterdir())) == count, f"{count} workers started")
    return [int(path.name) for path in folder.iterdir()]


def test_a_worker_that_dies_is_started_again_and_ends_with_its_supervisor(tmp_path: Path) -> None:
    with supervisor(tmp_path):
        (first,) = started(tmp_path, 1)
        os.kill(first, signal.SIGKILL)
        both = started(tmp_path, 2)
    assert all(gone(pid) for pid in both)


def test_a_worker_that_does_not_stop_when_asked_is_killed(tmp_path: Path) -> None:
    with supervisor(tmp_path, "deaf", grace_s=0.3):
        (worker,) = started(tmp_path, 1)
    until(lambda: gone(worker), "the end of a process that was killed")


SERVICE = """
import signal, sys, time
from service.jobs.supervisor import WorkerSupervisor
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with WorkerSupervisor(sys.argv[1:], {}, grace_s=5):
    time.sleep(60)
"""


class Processes(NamedTuple):
    """The service, its watchdog, the worker, its watchdog, the run."""

    service: int
    watchdog: int
    worker: int
    inner_watchdog: int
    run: int


@pytest.fixture
def running(queue: JobQueue, database_url: str, tmp_path: Path) -> Iterator[Processes]:
    """A service with a real worker that runs a job."""
    job = queue.enqueue("fake", {"steps": 10_000, "seconds": 0.05})
    worker = [sys.executable, str(FAKE_WORKER), database_url, str(tmp_path / "jobs")]
    process = subprocess.Popen([sys.executable, "-c", SERVICE, *worker])
    try:
        until(lambda: queue.get(job.id).progress.step, "the job runs")
        found = [process.pid]
        for pid in found:
            found += children(pid)
        yield Processes(*found)
    finally:
        process.kill()
        process.wait()
        until(lambda: not left(tmp_path), "nothing is left for other tests")


def left(folder: Path) -> list[int]:
    """Every process that has the folder in its command line, whoever its parent is."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(folder) in part for part in process.info["cmdline"] or ())
    ]


@pytest.mark.parametrize(
    "killed",
    [
        ("service",),
        ("watchdog", "service"),
        ("watchdog", "inner_watchdog", "service"),
        ("worker", "inner_watchdog", "watchdog", "service"),
    ],
    ids=" then ".join,
)
def test_whoever_is_killed_first_nothing_outlives_the_service(
    running: Processes, tmp_path: Path, killed: tuple[str, ...]
) -> None:
    for name in killed:
        os.kill(getattr(running, name), signal.SIGKILL)
    until(lambda: not left(tmp_path), "nothing is left", timeout_s=10)


def test_a_clean_stop_leaves_nothing_though_guards_were_killed_before(
    running: Processes, tmp_path: Path
) -> None:
    os.kill(running.watchdog, signal.SIGKILL)
    until(lambda: gone(running.worker), "its worker ends with it")
    until(lambda: gone(running.run), "and so does the run")
    until(lambda: children(running.service), "another watchdog is started")
    os.kill(running.service, signal.SIGTERM)
    until(lambda: not left(tmp_path), "nothing is left", timeout_s=10)


def test_a_killed_worker_is_replaced_and_only_the_new_one_is_left(
    running: Processes, tmp_path: Path
) -> None:
    os.kill(running.worker, signal.SIGKILL)
    until(lambda: gone(running.run), "the run ends with its worker")
    until(lambda: len(left(tmp_path)) == 5, "service, watchdog, worker, watchdog and run again")
    assert not set(running[1:]) & set(left(tmp_path))

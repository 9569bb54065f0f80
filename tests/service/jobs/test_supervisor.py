import os
import signal
import subprocess
import sys
from pathlib import Path

from service.jobs.supervisor import WorkerSupervisor
from tests.e2e.deployment import gone, until

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
    assert gone(worker)


def test_a_worker_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    workers = tmp_path / "workers"
    workers.mkdir()
    script = (
        "import sys, time; from service.jobs.supervisor import WorkerSupervisor\n"
        "with WorkerSupervisor(sys.argv[1:], {}, grace_s=5): time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, sys.executable, "-c", WORKER, workers, "well"]
    )
    (worker,) = started(workers, 1)
    process.kill()
    process.wait()
    until(lambda: gone(worker), "the worker is gone")

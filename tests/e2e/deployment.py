"""A deployment in processes of its own, for tests that kill them."""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from service.client import Client

_SERVE = (sys.executable, "-m", "service", "serve", "--port", "0")
QUICK_TRAINING = Path(__file__).parent / "quick_training"


class Deployment:
    """`gaitid serve` on a data folder; may be killed and started again."""

    def __init__(self, folder: Path, models: Path, *, quick_training: bool = True) -> None:
        self.data = folder / "data"
        self._folder = folder
        self._environment = {
            **os.environ,
            "GAITID_SHIPPED_MODELS_DIR": str(models),
            "GAITID_DEVICE": "cpu",
            "GAITID_LEASE_SECONDS": "1.5",
            "GAITID_CANCEL_GRACE_SECONDS": "1",
            "OMP_NUM_THREADS": "2",
        }
        if quick_training:
            inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            paths = [str(QUICK_TRAINING), *filter(None, inherited)]
            self._environment["PYTHONPATH"] = os.pathsep.join(paths)
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self._client: Client | None = None

    def set(self, **settings: str) -> None:
        """Change the environment that the service is started with."""
        self._environment |= settings

    def start(self, *options: str) -> Client:
        """Start the service and return a client once it is ready."""
        with (self._folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*_SERVE, "--data-dir", str(self.data), *options],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                cwd=self._folder,  # so that `-m training` does not find the repository's first
            )
        output = cast(IO[bytes], self.process.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            assert selector.select(60), "the service does not announce itself"
            line = output.readline().decode()
        assert line.startswith("GaitID listens on http://127.0.0.1:"), self.log()
        self.url = line.split()[-1]
        client = self._client = Client(self.url)
        until(client.ready, "the service is ready")
        return client

    def log(self) -> str:
        return (self._folder / "service.log").read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        assert self.process is not None
        assert self._client is not None
        self._client.close()
        self.process.send_signal(number)
        status = self.process.wait(timeout=30)
        cast(IO[bytes], self.process.stdout).close()
        self.process = None
        return status

    def worker(self) -> int:
        """Process id of the worker that runs beside the api."""
        return int(until(lambda: self._workers()[-1:], "a worker runs")[0])

    def _workers(self) -> list[int]:
        assert self.process is not None
        guards = children(self.process.pid)
        return [
            worker
            for guard in guards
            for worker in children(guard)
            if b"worker" in Path(f"/proc/{worker}/cmdline").read_bytes()
        ]


def children(pid: int) -> list[int]:
    """Process ids of a process's children, on Linux."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for tasks in found for child in tasks.read_text().split()]


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody reaped yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(holds: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait for something to hold and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.03)
    return value

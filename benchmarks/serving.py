"""The real service in a process of its own, for benchmarks over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def server(data_dir: Path, checkpoint_dir: Path, *, worker: bool) -> Iterator[httpx.Client]:
    """Serve `data_dir` with a model, beside whose folder others may lie, until the block ends.

    It begins when the service is ready; with `worker` the service runs jobs as well.
    """
    environment = {
        **os.environ,
        "GAITID_SHIPPED_MODELS_DIR": str(checkpoint_dir.parent),
        "GAITID_MODEL": checkpoint_dir.name,
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    command += [] if worker else ["--no-worker"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        announced = process.stdout.readline() if process.stdout else ""
        with httpx.Client(base_url=announced.rsplit(" ", 1)[-1].strip(), timeout=120) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(30)

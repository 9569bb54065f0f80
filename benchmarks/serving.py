"""Servers in processes of their own, for benchmarks over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]


@contextmanager
def server(
    data_dir: Path, checkpoint_dir: Path, *, worker: bool, tree: Path = ROOT
) -> Iterator[httpx.Client]:
    """Serve `data_dir` with a model, beside whose folder others may lie, until the block ends.

    It begins when the service is ready; with `worker` the service runs jobs as well. `tree` has the
    code that serves.
    """
    settings = {
        "GAITID_SHIPPED_MODELS_DIR": str(checkpoint_dir.parent),
        "GAITID_MODEL": checkpoint_dir.name,
    }
    command = ["service", "serve", "--port", "0", "--data-dir", str(data_dir)]
    command += [] if worker else ["--no-worker"]
    with running(command, settings, tree=tree) as client:
        yield client


@contextmanager
def running(
    command: list[str], settings: Mapping[str, str] | None = None, *, tree: Path = ROOT
) -> Iterator[httpx.Client]:
    """Run `python -m COMMAND` of a tree, which announces its address, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=tree,
        env=environment(tree) | dict(settings or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        announced = process.stdout.readline() if process.stdout else ""
        with httpx.Client(base_url=announced.rsplit(" ", 1)[-1].strip(), timeout=120) as client:
            while not _ready(client):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def environment(tree: Path) -> dict[str, str]:
    """This process's environment, with a tree's code before any other."""
    path = (str(tree), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:  # the port is there before the program
        return False

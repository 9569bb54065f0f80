from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.process import processor
from training.process.processor import configure_processor, one_thread_each, usable_cores


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu.max": ""}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "200000\n"}, 8),
    ],
)
def test_a_containers_quota_bounds_the_cores(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("cores", "chosen"), [(1, "1"), (2, "2"), (3, "2"), (16, "15")])
def test_one_core_of_three_or_more_is_left_to_others(
    monkeypatch: pytest.MonkeyPatch, cores: int, chosen: str
) -> None:
    monkeypatch.setattr(processor, "usable_cores", lambda: cores)
    environment: dict[str, str] = {}
    configure_processor(environment, Path("no such file"))
    assert environment == {
        "OMP_NUM_THREADS": chosen,
        "OMP_WAIT_POLICY": "passive",
        "OPENCV_IPP": "disabled",
        "OPENCV_LOG_LEVEL": "ERROR",
    }


def test_what_was_said_already_stays() -> None:
    said = {
        "OMP_NUM_THREADS": "8",
        "OMP_WAIT_POLICY": "active",
        "OPENBLAS_CORETYPE": "Zen",
        "OPENCV_IPP": "enabled",
        "OPENCV_LOG_LEVEL": "INFO",
    }
    environment = dict(said)
    configure_processor(environment)
    assert environment == said


@pytest.mark.parametrize(
    ("flags", "kernel"),
    [("fma avx avx2 avx512f", "Haswell"), ("fma avx", None), ("asimd sve", None)],
)
def test_processors_that_can_multiply_in_the_same_way(
    tmp_path: Path, flags: str, kernel: str | None
) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} bmi2\nbugs\t\t:\n\n")
    environment: dict[str, str] = {}
    configure_processor(environment, told)
    assert environment.get("OPENBLAS_CORETYPE") == kernel


def test_processes_started_meanwhile_compute_on_one_core_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    told = "import torch; print(torch.get_num_threads())"
    with one_thread_each(os.environ):
        ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert ran.stdout == "1\n", ran.stderr
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "OPENBLAS_NUM_THREADS" not in os.environ

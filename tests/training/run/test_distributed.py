from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models import checkpoint
from tests.training.run.two_ranks import gradients
from tests.training.runs import TINY
from training.objective.registry import METHODS
from training.run.distributed import Group, join

ROOT = Path(__file__).parents[3]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
         *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_a_run_in_float32_is_not_rounded_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch leaves it
    join()
    assert not torch.backends.cudnn.allow_tf32


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """The gradients of every kind of term that two processes find."""
    saved = tmp_path_factory.mktemp("ranks") / "gradients.pt"
    ended = torchrun("tests.training.run.two_ranks", str(saved))
    assert ended.returncode == 0, ended.stderr
    found: dict[str, dict[str, torch.Tensor]] = torch.load(saved, weights_only=True)
    return found


@pytest.mark.parametrize("kind", METHODS)
def test_two_processes_find_the_gradient_of_one_with_the_whole_batch(
    together: dict[str, dict[str, torch.Tensor]], kind: str
) -> None:
    alone = gradients(Group(0, 1, torch.device("cpu")), kind)
    assert together[kind].keys() == alone.keys()
    assert any(gradient.abs().sum() > 0 for gradient in alone.values())
    for name, gradient in alone.items():
        difference = (together[kind][name] - gradient).norm()
        # sums in another order; a term gathered or averaged wrongly is off by a factor
        assert difference <= 1e-3 * gradient.norm() + 1e-6, name


def test_two_processes_distil_one_student_and_one_of_them_reports(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    settings = [f"--set={setting}" for setting in (*TINY, "batch.subjects=4", "average=0.9")]
    ended = torchrun(
        "training", "distill", "gaitkd-corrected", "--out", str(tmp_path), "--dataset", str(pack),
        "--teacher", str(make_teacher()), "--json", *settings,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [event["event"] for event in events].count("done") == 1
    assert [e["step"] for e in events if e["event"] == "progress"] == [2, 4, 6]
    _, card = checkpoint.load(Path(events[-1]["checkpoint"]), "cpu")
    assert card.training["processes"] == 2


def test_two_hosts_with_folders_of_their_own_train_one_network_by_one_command(
    pack: Path, tmp_path: Path
) -> None:
    settings = [f"--set={setting}" for setting in (*TINY, "batch.subjects=4")]
    rendezvous = (
        "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=run",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1",
    )  # fmt: skip
    hosts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copytree(pack, tmp_path / name / "walks.pack")
        hosts.append(
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *rendezvous, "-m", "training",
                 "train", "student-baseline", "--out", "run", "--dataset", "walks.pack", "--json",
                 *settings],
                cwd=tmp_path / name,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    told = []
    for host in hosts:
        output, errors = host.communicate(timeout=200)
        assert host.returncode == 0, errors
        told.append([json.loads(line) for line in output.splitlines()])
    (leader,) = [number for number, events in enumerate(told) if events]  # the other is silent
    assert [e["step"] for e in told[leader] if e["event"] == "progress"] == [2, 4, 6]
    folder = tmp_path / ("one", "two")[leader]
    _, card = checkpoint.load(folder / told[leader][-1]["checkpoint"], "cpu")
    assert card.training["processes"] == 2

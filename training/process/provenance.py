"""Commit, hardware and versions, recorded so that a run can be repeated."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


def commit() -> str | None:
    """The commit of this code, with "+" if files have changed; None outside a git checkout."""
    folder = Path(__file__).parent
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+" if changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # an installed package has no history, a slim image no git
    return answer.stdout.strip()


def hardware(device: torch.device) -> str:
    """The processor or accelerator that did the work, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return f"{name or platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def versions() -> dict[str, str]:
    """Versions of Python and torch."""
    return {"python": platform.python_version(), "torch": torch.__version__}

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from training.data import Pack, PackWriter

Walk = Callable[..., npt.NDArray[np.uint8]]


@pytest.fixture
def walk() -> Walk:
    """Random binary silhouettes; the first pixels of a frame spell its number."""

    def make(seed: int, frames: int, *, grey: bool = False) -> npt.NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        if grey:
            return rng.integers(0, 256, (frames, 64, 64), dtype=np.uint8)
        silhouettes = (rng.random((frames, 64, 64)) < 0.3).astype(np.uint8) * 255
        number = np.arange(frames, dtype=np.uint8)
        silhouettes[:, 0, :8] = np.unpackbits(number[:, None], axis=1) * 255
        return silhouettes.astype(np.uint8)

    return make


@pytest.fixture
def small_pack(tmp_path: Path, walk: Walk) -> Pack:
    """6 subjects, 5 sequences each but the last, who has 2; 12 to 39 frames; two views."""
    with PackWriter(tmp_path / "small.pack") as writer:
        for subject in range(6):
            for k in range(5 if subject < 5 else 2):
                frames = 12 + (subject * 7 + k * 5) % 28
                view = "000" if k % 2 else "090"
                writer.add(f"s{subject}", f"nm-{k}", view, walk(subject * 10 + k, frames))
        return writer.finish()

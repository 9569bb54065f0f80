"""Tiny drawn walkers: enough of a person for a network to learn something in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.data import Pack, PackWriter, Partition

CONDITIONS = ("normal-01", "normal-02", "coat-01")
VIEWS = ("000", "090")


def draw_walk(subject: int, walk: int, frames: int) -> np.ndarray:
    """uint8 [frames, 64, 64]: a body whose build and gait are the subject's, seen at some phase."""
    person = np.random.default_rng([11, subject])
    width, leg, stride, period = person.uniform([4, 1.5, 3, 8], [10, 4, 11, 16])
    head, lean = person.uniform([3, -4], [6, 4])
    phase = np.random.default_rng([12, subject, walk]).uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:64, 0:64]
    shown = []
    for t in range(frames):
        s = np.sin(2 * np.pi * t / period + phase)
        body = ((x - 32 - lean * (30 - y) / 30) / width) ** 2 + ((y - 25) / 15) ** 2 <= 1
        body |= (x - 32 - lean) ** 2 + (y - 8) ** 2 <= head**2
        for side in (1, -1):
            centre = 32 + side * stride * s * (y - 36) / 26
            body |= (y >= 36) & (y <= 62) & (np.abs(x - centre) <= leg)
        shown.append(body)
    return np.stack(shown).astype(np.uint8) * 255


def make_pack(
    path: Path,
    *,
    subjects: int = 6,
    test_subjects: int = 0,
    frames: int = 14,
    pose_maps: bool = False,
) -> Pack:
    ids = [f"s{i:02d}" for i in range(subjects)]
    with PackWriter(path) as writer:
        for number, subject in enumerate(ids):
            for walk, condition in enumerate(CONDITIONS):
                for view_number, view in enumerate(VIEWS):
                    silhouettes = draw_walk(number, 2 * walk + view_number, frames)
                    poses = np.stack([silhouettes // 2, silhouettes // 3], 1)
                    maps = poses if pose_maps else None
                    writer.add(subject, condition, view, silhouettes, pose_maps=maps)
        train = ids[: subjects - test_subjects]
        partition = Partition(train=tuple(train), test=tuple(ids[len(train) :]))
        return writer.finish(partition)

"""Drawn walkers: enough of a person for the quality checks, different enough to tell apart."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.types import Quality

GOOD = Quality(1.0, (), 40, 40, {})


def walker(person: int, *, phase: float = 0.0, frames: int = 40) -> NDArray[np.uint8]:
    """A person who walks: uint8 [s, 120, 90]."""
    draw = np.random.default_rng(person)
    girth, shoulders, stride, head = draw.uniform([7, 10, 9, 6], [13, 15, 16, 8])
    film = np.zeros((frames, 120, 90), np.uint8)
    for index, frame in enumerate(film):
        swing = stride * np.sin(2 * np.pi * index / 24 + phase)
        cv2.circle(frame, (45, 16), round(head), 255, -1)
        cv2.ellipse(frame, (45, 44), (round(shoulders), 24), 0, 0, 360, 255, -1)
        cv2.ellipse(frame, (45, 58), (round(girth), 14), 0, 0, 360, 255, -1)
        for side in (1, -1):
            foot = (round(45 + side * swing), 110)
            cv2.line(frame, (45, 62), foot, 255, 8)
    return film


def npz(frames: NDArray[np.generic]) -> bytes:
    """Frames as an upload."""
    file = BytesIO()
    np.savez_compressed(file, silhouettes=frames)
    return file.getvalue()


def walk(person: int, *, phase: float = 0.0, frames: int = 40) -> bytes:
    """A walker as an upload."""
    return npz(walker(person, phase=phase, frames=frames))

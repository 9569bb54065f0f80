"""The field's normalisation: one person's rows at height 64, centred on the person's middle column.

Source: the preprocessing of OpenGait (`datasets/pretreatment.py` and `BaseSilCuttingTransform`),
its quirks included, because published networks were trained on its output. Equal to it bit for bit
with the same OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from models.silhouettes.types import Frame, Silhouettes

HEIGHT = 64
WIDTH = 64
CUT_WIDTH = 44

_LEAST_SUM = 10_000
"""A frame whose values sum to no more is empty: about 39 white pixels."""


def normalise(frame: Frame) -> Frame | None:
    """Crop to the person's rows, resize to height 64 keeping the aspect, centre on the middle.

    The middle is the first column at which half of the frame's mass has been passed. Bicubic
    resizing leaves grey levels at the edges; they are kept.

    Args:
        frame: uint8 `[h, w]`.

    Returns:
        uint8 `[64, 64]`, or None for a frame that holds too little, or whose middle is column 0.
    """
    if cv2.sumElems(frame)[0] <= _LEAST_SUM:
        return None
    rows = np.flatnonzero(cv2.reduce(frame, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S))
    person = frame[rows[0] : rows[-1] + 1]
    columns = int(HEIGHT * (person.shape[1] / person.shape[0]))
    if columns == 0:
        return None
    resized = cv2.resize(person, (columns, HEIGHT), interpolation=cv2.INTER_CUBIC)
    sums = cv2.reduce(resized, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    mass = np.asarray(sums, np.int64)[0].cumsum()
    middle = int(mass.searchsorted(mass[-1] / 2, side="right"))
    if middle == 0 or mass[-1] == 0:
        # The reference reads column 0 as "no middle found"; a thin column can vanish in resizing.
        return None
    left = middle - WIDTH // 2
    start, end = max(left, 0), min(left + WIDTH, columns)
    silhouette = np.zeros((HEIGHT, WIDTH), np.uint8)
    silhouette[:, start - left : end - left] = resized[:, start:end]
    return silhouette


def cut(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut the empty margins off normalised frames, ten columns a side for every 64 of width.

    Args:
        frames: uint8 `[..., h, w]`: 64 wide becomes 44, 128 becomes 88, 44 stays as it is.

    Returns:
        A view of `frames`.
    """
    margin = frames.shape[-1] // 64 * 10
    return frames[..., margin : frames.shape[-1] - margin]


def pad(frames: NDArray[np.uint8]) -> Silhouettes:
    """Give frames `[s, 64, 44]` their empty margins back: `cut(pad(frames))` equals `frames`."""
    margin = (WIDTH - CUT_WIDTH) // 2
    return np.pad(frames, ((0, 0), (0, 0), (margin, margin)))


def gait_energy_image(silhouettes: Silhouettes) -> NDArray[np.float32]:
    """The mean over frames, in [0, 1] (Han and Bhanu, TPAMI 2006).

    Args:
        silhouettes: uint8 `[s, 64, 64]`, or cut to `[s, 64, 44]`.

    Returns:
        float32 `[64, 44]`.

    Raises:
        ValueError: there are no frames.
    """
    if len(silhouettes) == 0:
        raise ValueError("a gait energy image needs at least one frame")
    mean: NDArray[np.float64] = cut(silhouettes).mean(axis=0, dtype=np.float64)
    return (mean / 255).astype(np.float32)

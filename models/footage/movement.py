"""How the pixels of a window move from one picture to the next, and masks with them."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from models.footage.boxes import SIDE
from models.footage.pictures import Image

_Mask = TypeVar("_Mask", NDArray[np.uint8], NDArray[np.float32])


class Movement:
    """Optical flow (T. Kroeger et al., "Fast Optical Flow using Dense Inverse Search", 2016)."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._rows, self._columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)

    def carry(self, mask: _Mask, there: NDArray[np.uint8], here: NDArray[np.uint8]) -> _Mask:
        """A mask `[160, 160]` of one window as it would be in another.

        Args:
            mask: of the first window.
            there: the first window's greys, uint8 `[160, 160]`.
            here: the other one's.
        """
        moved = self._flow.calc(here, there, np.zeros((SIDE, SIDE, 2), np.float32))
        across, down = self._columns + moved[..., 0], self._rows + moved[..., 1]
        return cv2.remap(mask, across, down, cv2.INTER_LINEAR).astype(mask.dtype, copy=False)


def grey(pixels: Image) -> NDArray[np.uint8]:
    """A window's pixels uint8 `[160, 160, 3]` without their colours."""
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)

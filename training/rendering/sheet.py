"""A contact sheet of a pack: `python -m training.rendering.sheet PACK OUT.png [--rows 16]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.pack import Pack

_COLUMNS = 12
_SIDES = 2
_CUT = slice(8, 56)


def contact_sheet(pack: Pack, *, rows: int, seed: int = 0) -> NDArray[np.uint8]:
    """Frames of sequences chosen at random, a sequence a row, two columns of sequences.

    Args:
        pack: what to show.
        rows: sequences in each column.
        seed: chooses the sequences.

    Returns:
        uint8 0/255 `[rows * 64, …]`.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(pack))[: _SIDES * rows]
    strips = [_strip(pack.silhouettes(int(sequence))) for sequence in chosen]
    gap = np.full((64, 12), 128, np.uint8)
    lines = [
        np.hstack([left, gap, right])
        for left, right in zip(strips[::2], strips[1::2], strict=False)
    ]
    return np.vstack(lines)


def _strip(silhouettes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    at = np.linspace(0, len(silhouettes) - 1, _COLUMNS).astype(int)
    return np.hstack(list(silhouettes[at][:, :, _CUT]))


def main() -> None:
    """Write the sheet of the pack named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sheet = contact_sheet(Pack.open(arguments.pack), rows=arguments.rows, seed=arguments.seed)
    ok, png = cv2.imencode(".png", sheet, [cv2.IMWRITE_PNG_BILEVEL, 0])
    if not ok:
        raise OSError("the sheet could not be encoded")
    arguments.out.write_bytes(png.tobytes())


if __name__ == "__main__":
    main()

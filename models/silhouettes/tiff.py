"""What the pages of a TIFF would have Pillow and libtiff keep, told before it is opened."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.silhouettes.budget import Budget
from models.silhouettes.errors import SequenceTooLarge, UnsupportedSequence

_SHORT, _LONG = 3, 4
_BYTE_TYPES = (1, 2, 6, 7)  # taken as they are; of the other types each value becomes a number
_MOST_NUMBERS = 2**16  # of one page: with a strip for every row of every channel, half of it
_MOST_TAGS = 2**10
_COMPRESSION, _TILE_WIDTH, _TILE_LENGTH = 259, 322, 323
_LZMA = 34925


def check_pages(data: bytes, budget: Budget, *, where: str = "") -> None:
    """Refuse a TIFF whose pages say too much of themselves, or would be unpacked in large tiles.

    Raises:
        SequenceTooLarge: more tags than any image has, more numbers in them, or larger tiles.
        UnsupportedSequence: LZMA, which may ask for gigabytes to unpack anything at all.
    """
    order: Literal["<", ">"] = "<" if data.startswith(b"II") else ">"
    entry = np.dtype([("tag", "u2"), ("type", "u2"), ("count", "u4"), ("value", "V4")])
    entry = entry.newbyteorder(order)
    (position,) = struct.unpack_from(f"{order}I", data, 4)
    seen: set[int] = set()
    while position and position not in seen:
        seen.add(position)
        budget.check_time()
        budget.check_frame_count(len(seen))
        (count,) = struct.unpack_from(f"{order}H", data, position)
        entries = np.frombuffer(data, entry, count, position + 2)
        if count > _MOST_TAGS or _numbers(entries) > _MOST_NUMBERS:
            raise SequenceTooLarge(
                "a TIFF that says too much of itself; save it as PNG", where=where
            )
        for tag, value in _values(entries, order):
            if tag == _COMPRESSION and value == _LZMA:
                raise UnsupportedSequence("a TIFF compressed by LZMA; save it as PNG", where=where)
            if tag in (_TILE_WIDTH, _TILE_LENGTH):
                budget.check_sides(value, value, where=where)
        (position,) = struct.unpack_from(f"{order}I", data, position + 2 + entries.nbytes)


def _numbers(entries: NDArray[np.void]) -> int:
    counts: NDArray[np.uint32] = entries["count"][~np.isin(entries["type"], _BYTE_TYPES)]
    return int(counts.sum(dtype=np.int64))


def _values(entries: NDArray[np.void], order: Literal["<", ">"]) -> Iterator[tuple[int, int]]:
    """The tags looked at here, each with its value: one number of 16 or 32 bits."""
    for row in entries[np.isin(entries["tag"], (_COMPRESSION, _TILE_WIDTH, _TILE_LENGTH))]:
        if row["count"] != 1 or row["type"] not in (_SHORT, _LONG):
            raise ValueError("not one number")  # libtiff takes others, elsewhere in the file
        layout = f"{order}H2x" if row["type"] == _SHORT else f"{order}I"
        yield int(row["tag"]), struct.unpack(layout, row["value"].tobytes())[0]

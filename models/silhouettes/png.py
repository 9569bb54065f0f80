"""Grey PNGs as silhouettes are mostly saved, read in a fraction of the time that Pillow takes.

Read are plain and whole ones: 1 or 8 bits of grey, not interlaced, no chunk that could change a
pixel, every checksum right, and rows filtered in ways that can be undone many pixels at a time. Of
all others nothing is said here: Pillow reads them, or finds the fault.
"""

from __future__ import annotations

import itertools
import struct
import zlib

import cv2
import numpy as np

from models.silhouettes.budget import Budget
from models.silhouettes.types import Frame

_HEADER_AT = 8
_FIRST = b"\0\0\0\rIHDR"
_HEADER = struct.Struct(">IIBBBBB")
_CHUNK = struct.Struct(">I4s")
_SILENT = {b"gAMA": 4, b"pHYs": 9}
_END = {b"IEND": 0}
"""Chunks before and after the pixels that change none, and how long they are."""
_MOST_CHUNKS = 2**12  # of one file; others have Pillow's patience
_TO_FIRST_BYTE = 512  # from the start: tables of Huffman codes come first
_SUB, _UP = 1, 2
"""Filters of rows whose bytes are differences: to the byte on the left, to the byte above."""


def decode_plain(data: bytes, budget: Budget, *, where: str) -> Frame | None:
    """The frame of a plain PNG; None, and nothing spent, if another decoder has to look at it."""
    if not data.startswith(_FIRST, _HEADER_AT) or (content := _pixels(data)) is None:
        return None
    columns, rows, bits, *rest = _HEADER.unpack_from(data, _HEADER_AT + 8)
    if bits not in (1, 8) or any(rest) or max(rows, columns) > budget.limits.max_side:
        return None
    if not 0 < rows * columns <= budget.bytes_left:
        return None
    packed = _unpack(content, rows, (columns * bits + 7) // 8, certain=bits == 1)
    if packed is None:
        return None
    budget.take_frame(rows, columns, where=where)
    if bits == 8:
        return packed
    frame = np.unpackbits(packed, axis=1, count=columns)
    return np.negative(frame, out=frame)  # 1 becomes 255


def _pixels(data: bytes) -> bytes | None:
    """The compressed pixels, if the file is as its checksums say and holds little else."""
    parts: list[bytes] = []
    position = _HEADER_AT
    for _ in range(_MOST_CHUNKS):
        if position + 12 > len(data):
            return None
        length, kind = _CHUNK.unpack_from(data, position)
        end = position + 8 + length
        if zlib.crc32(data[position + 4 : end]).to_bytes(4) != data[end : end + 4]:
            return None
        if kind == b"IDAT":
            parts.append(data[position + 8 : end])
        elif position > _HEADER_AT and length != (_END if parts else _SILENT).get(kind):
            return None
        position = end + 4
        if kind == b"IEND":
            return b"".join(parts) if position == len(data) else None
    return None


def _unpack(content: bytes, rows: int, width: int, *, certain: bool) -> Frame | None:
    """The rows, `[rows, width]` bytes, if no filter is more than `_UP`.

    Unless it is `certain` that it is worth it, the first row must have been filtered by `_SUB`:
    OpenCV does that with all; other writers mix all filters where a pixel has 8 bits.
    """
    size = rows * (width + 1)
    unpacker = zlib.decompressobj()
    try:
        if not certain and zlib.decompressobj().decompress(content[:_TO_FIRST_BYTE], 1) != bytes(
            [_SUB]
        ):
            return None
        # One byte more than there should be: only then is the end looked at, and its checksum.
        unpacked = unpacker.decompress(content, size + 1)
    except zlib.error:
        return None
    if len(unpacked) != size or not unpacker.eof or unpacker.unused_data:
        return None
    filtered = np.frombuffer(unpacked, np.uint8).reshape(rows, width + 1)
    filters = filtered[:, 0]
    if filters.max() > _UP:
        return None
    values = filtered[:, 1:].copy()
    changes = np.flatnonzero(filters[1:] != filters[:-1]) + 1
    for start, end in itertools.pairwise([0, *changes.tolist(), rows]):
        if filters[start] == _SUB:
            _add_right(values[start:end])
        elif filters[start] == _UP:
            above = values[max(0, start - 1) : end]
            np.cumsum(above, axis=0, out=above)
    return values


def _add_right(values: Frame) -> None:
    """Undo `_SUB`, in place: only where anything differs, a small part of a silhouette."""
    left, top, width, height = cv2.boundingRect(values)
    if height:
        rows, right = values[top : top + height], left + width
        np.cumsum(rows[:, left:right], axis=1, out=rows[:, left:right])
        rows[:, right:] = rows[:, right - 1 : right]

"""Plain grey PNGs, as segmenters write them: unpacked as a whole, where Pillow goes row by row.

Of a file that is anything else (colours, interlaced, with more in it, or damaged) nothing is said:
Pillow reads it, or says what is wrong with it.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from zlib_ng import zlib_ng

from models.silhouettes.types import Frame

_BEGIN: Final = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_HEADER_END: Final = 33
_END: Final = b"\0\0\0\0IEND\xae\x42\x60\x82"
_SAYS_NOTHING: Final = {b"pHYs": 9, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"tIME": 7}
"""Chunks that change no pixel, of the lengths that they must have."""

_MOST_PIECES: Final = 1024
_SUB: Final = 1  # what a row is written as, by its first byte: 0, the pixels as they are (PNG, 9.2)
_LONGEST_STORED: Final = 2**16 - 1


class PlainPng(NamedTuple):
    """A plain grey PNG, not yet unpacked.

    Attributes:
        rows, columns: of the image, at least 1.
        is_bilevel: one bit a pixel instead of eight.
        packed: the pixels as they are in the file.
    """

    rows: int
    columns: int
    is_bilevel: bool
    packed: bytes

    @classmethod
    def of(cls, data: bytes) -> PlainPng | None:
        """The header and what follows; None if the file is not that plain."""
        if not data.startswith(_BEGIN) or not data.endswith(_END):
            return None
        if zlib.crc32(data[12:29]).to_bytes(4, "big") != data[29:_HEADER_END]:
            return None
        columns, rows = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        depth, rest = data[24], data[25:29]  # grey, deflate, the five ways, not interlaced
        if depth not in (1, 8) or rest != bytes(4) or not rows or not columns:
            return None
        pieces = _pieces(data)
        return None if pieces is None else cls(rows, columns, depth == 1, b"".join(pieces))

    def unpack(self) -> Frame | None:
        """The pixels, uint8 `[h, w]`, 1 as 255 where there is one bit; None if it is damaged."""
        width = -(-self.columns // 8) if self.is_bilevel else self.columns
        size = self.rows * (1 + width)
        try:
            content = zlib_ng.decompressobj().decompress(self.packed, size)
        except zlib_ng.error:  # type: ignore[misc]  # its stub calls it an instance
            return None
        if len(content) != size:
            return None
        written = np.frombuffer(content, np.uint8).reshape(self.rows, 1 + width)
        ways, written = written[:, 0], written[:, 1:]
        if ways.max() > _SUB:
            return self._in_pillow(content)
        pixels = _summed(ways, written) if ways.any() else written
        if not self.is_bilevel:
            return pixels.copy() if pixels is written else pixels
        bits = np.unpackbits(pixels, axis=1, count=self.columns)
        return np.negative(bits, out=bits)

    def _in_pillow(self, content: bytes) -> Frame | None:
        """Pixels that are written by what is above them, too, one after the other."""
        mode = "1" if self.is_bilevel else "L"
        try:
            image = Image.frombytes(
                mode, (self.columns, self.rows), _stored(content), "zip", mode, False
            )
        except ValueError:
            return None
        return np.array(image.convert("L"))


def _pieces(data: bytes) -> list[bytes] | None:
    """The parts of a file that hold pixels; None if there is anything else that matters."""
    pieces: list[bytes] = []
    position = _HEADER_END
    while position < len(data) - len(_END):
        length = int.from_bytes(data[position : position + 4], "big")
        kind, start = data[position + 4 : position + 8], position + 8
        position = start + length + 4
        if kind == b"IDAT":
            pieces.append(data[start : start + length])
        elif pieces or _SAYS_NOTHING.get(kind) != length or not _is_whole(data, start, length):
            return None
        if len(pieces) > _MOST_PIECES:
            return None
    return pieces if position == len(data) - len(_END) else None


def _is_whole(data: bytes, start: int, length: int) -> bool:
    checked = data[start + length : start + length + 4]
    return zlib.crc32(data[start - 4 : start + length]).to_bytes(4, "big") == checked


def _summed(ways: NDArray[np.uint8], written: NDArray[np.uint8]) -> Frame:
    """Pixels `[h, w]` of what is written of them: as they are, or what each adds to the one before.

    Most of a silhouette is black, written as 0: only a box around the rest is gone through.
    """
    left, top, width, height = cv2.boundingRect(written)
    box = np.s_[top : top + height, left : left + width]
    summed = np.add.accumulate(written[box], axis=1, dtype=np.uint8)
    are_sums = ways[top : top + height] == _SUB
    if not are_sums.all():
        summed = np.where(are_sums[:, None], summed, written[box])
    pixels = np.zeros(written.shape, np.uint8)
    pixels[box] = summed
    if width:
        pixels[top : top + height, left + width :] = (summed[:, -1] * are_sums)[:, None]
    return pixels


def _stored(content: bytes) -> bytes:
    """Content as zlib would have it uncompressed (RFC 1950, 1951), without a checksum."""
    pieces = [b"\x78\x01"]
    for start in range(0, len(content), _LONGEST_STORED):
        piece = content[start : start + _LONGEST_STORED]
        ends = start + len(piece) == len(content)
        pieces += [struct.pack("<BHH", ends, len(piece), len(piece) ^ 0xFFFF), piece]
    return b"".join(pieces)

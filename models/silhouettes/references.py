"""How many pictures a video decoder keeps, told from a stream's parameters before it is opened.

H.264 and HEVC may keep sixteen, and say in a sequence parameter set how many they do (ITU-T H.264
7.3.2.1.1, H.265 7.3.2.2.1); cameras keep a few. That is where a large picture becomes gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

_MOST_REFERENCES = {
    **{"h264": 16, "hevc": 16},
    **{"vp8": 3, "libvpx": 3, "vp9": 8, "libvpx-vp9": 8, "av1": 8, "libdav1d": 8},
}
_FEW_REFERENCES = 2  # of every other codec that is accepted
_AT_WORK = 2  # the picture that is being decoded, and the one that is being handed out
_START_CODE = re.compile(rb"\x00\x00\x01")
_LONGEST_SET = 4096  # bytes; scaling lists and all, they take hundreds
_WITH_CHROMA = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


def pictures_kept(codec: str, parameters: bytes, reorder: int) -> int:
    """At most how many pictures a decoder holds at once.

    Args:
        codec: its name in libav.
        parameters: what the container says of the stream (`extradata`), in any of its layouts.
        reorder: pictures it holds back to put them in order.
    """
    references = _MOST_REFERENCES.get(codec, _FEW_REFERENCES)
    if codec in ("h264", "hevc"):
        told = [count for unit in _units(parameters, codec) if (count := _told(codec, unit))]
        references = min(references, max(told, default=references))
    return references + (reorder if codec == "h264" else 0) + _AT_WORK


def _told(codec: str, unit: bytes) -> int:
    """The pictures to keep that a unit asks for; 0 if it is no sequence parameter set."""
    if not (unit and _is_set(codec, unit[0])):
        return 0
    read = {"h264": _read_h264, "hevc": _read_hevc}[codec]
    # A byte that keeps start codes from appearing inside is no part of what is said.
    bits = _Bits(unit[:_LONGEST_SET].replace(b"\x00\x00\x03", b"\x00\x00"))
    try:
        return read(bits)
    except EOFError:
        return _MOST_REFERENCES[codec]  # libav may make something of it


def _is_set(codec: str, first: int) -> bool:
    return first & 31 == 7 if codec == "h264" else first >> 1 & 63 == 33


def _units(parameters: bytes, codec: str) -> Iterator[bytes]:
    """The units in a record of MP4 and Matroska, or between start codes."""
    if parameters.startswith(b"\x01") and codec == "h264":
        yield from _listed(parameters, 6, parameters[5] & 31 if len(parameters) > 5 else 0)
    elif parameters.startswith(b"\x01"):
        position = 23
        for _ in range(parameters[22] if len(parameters) > 22 else 0):
            count = int.from_bytes(parameters[position + 1 : position + 3], "big")
            position += 3
            for unit in _listed(parameters, position, count):
                position += 2 + len(unit)
                yield unit
    else:
        starts = [found.end() for found in _START_CODE.finditer(parameters)]
        for start, end in pairwise([*starts, len(parameters)]):
            yield parameters[start:end]


def _listed(parameters: bytes, position: int, count: int) -> Iterator[bytes]:
    for _ in range(count):
        if position + 2 > len(parameters):
            return
        length = int.from_bytes(parameters[position : position + 2], "big")
        yield parameters[position + 2 : position + 2 + length]
        position += 2 + length


def _read_h264(bits: _Bits) -> int:
    bits.number(8)
    profile = bits.number(8)
    bits.number(16)
    bits.golomb()
    if profile in _WITH_CHROMA:
        chroma = bits.golomb()
        if chroma == 3:
            bits.number(1)
        bits.golomb()
        bits.golomb()
        bits.number(1)
        if bits.number(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.number(1):
                    _skip_scaling(bits, 16 if index < 6 else 64)
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.number(1)
        bits.golomb()
        bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    return max(1, bits.golomb())


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
        last = following or last


def _read_hevc(bits: _Bits) -> int:
    bits.number(16)
    bits.number(4)
    layers = bits.number(3)
    bits.number(1)
    bits.number(96)
    layer_flags = [bits.number(2) for _ in range(layers)]
    if layers:
        bits.number(2 * (8 - layers))
    for flags in layer_flags:
        bits.number((88 if flags & 2 else 0) + (8 if flags & 1 else 0))
    bits.golomb()
    if bits.golomb() == 3:
        bits.number(1)
    bits.golomb()
    bits.golomb()
    if bits.number(1):
        for _ in range(4):
            bits.golomb()
    for _ in range(3):
        bits.golomb()
    most = 0
    for _ in range(layers + 1 if bits.number(1) else 1):
        most = max(most, bits.golomb() + 1)
        bits.golomb()
        bits.golomb()
    return most


class _Bits:
    """Reads numbers of so many bits, and Exp-Golomb codes, from the front."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._position = 0

    def number(self, count: int) -> int:
        """An unsigned number; EOFError at the end."""
        end = self._position + count
        if end > len(self._bits):
            raise EOFError
        text = self._bits[self._position : end]
        self._position = end
        return int(text or "0", 2)

    def golomb(self) -> int:
        """An unsigned Exp-Golomb code; EOFError at the end."""
        one = self._bits.find("1", self._position)
        if one < 0 or one - self._position > 32:
            raise EOFError
        zeros = one - self._position
        self._position = one
        return self.number(zeros + 1) - 1

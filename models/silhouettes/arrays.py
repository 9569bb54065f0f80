"""`.npy` and `.npz`: uint8 or bool arrays `[s, h, w]`, read without anything that unpickles."""

from __future__ import annotations

import math
import re
import zipfile
from typing import NamedTuple

import numpy as np

from models.silhouettes.budget import Budget
from models.silhouettes.errors import MalformedSequence, UnsupportedSequence
from models.silhouettes.members import read_zip_member
from models.silhouettes.types import Frame

_HOW = "send uint8 or bool of shape [frames, rows, columns]"
_LONGEST_HEADER = 4096

_BYTES = frozenset({"|u1", "<u1", ">u1", "=u1", "u1", "uint8", "B"})
_BOOLEANS = frozenset({"|b1", "<b1", ">b1", "=b1", "b1", "bool", "?"})

# The three keys every .npy header has: matched, not evaluated, there is nothing else to learn.
_DESCR = re.compile(rb"['\"]descr['\"]:\s*['\"]([^'\"]{1,16})['\"]")
_ORDER = re.compile(rb"['\"]fortran_order['\"]:\s*(True|False)")
_SHAPE = re.compile(rb"['\"]shape['\"]:\s*\(([0-9, ]{0,200})\)")


class _Layout(NamedTuple):
    shape: tuple[int, int, int]
    fortran_order: bool
    boolean: bool
    offset: int


def decode_npy(data: bytes, budget: Budget, *, where: str = "") -> list[Frame]:
    """Read one array; what it costs is checked against its header before anything is copied.

    Booleans become 0 and 1; `decode` gives them full range.
    """
    layout = _read_header(data, where)
    frames, rows, columns = layout.shape
    if frames == 0:
        raise MalformedSequence(f"the array has no frames; {_HOW}", where=where)
    budget.check_frame_count(frames)
    budget.check_sides(rows, columns, where=where)
    count = math.prod(layout.shape)
    if len(data) - layout.offset < count:
        raise MalformedSequence(
            "the array is cut short: its header promises more than the file holds", where=where
        )
    for _ in range(frames):
        budget.take_frame(rows, columns, where=where)
    values = np.frombuffer(data, np.uint8, count, layout.offset)
    array = values.reshape(layout.shape, order="F" if layout.fortran_order else "C")
    if layout.boolean:
        array = (array != 0).view(np.uint8)
    return list(np.array(array, order="C"))


def decode_npz(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], budget: Budget
) -> list[Frame]:
    """Read the array `silhouettes`, or the only one."""
    arrays = {member.filename.removesuffix(".npy"): member for member in members}
    if "silhouettes" in arrays:
        member = arrays["silhouettes"]
    elif len(arrays) == 1:
        (member,) = arrays.values()
    else:
        raise MalformedSequence(
            f"the archive holds {len(arrays)} arrays; name the one to read 'silhouettes'"
        )
    return decode_npy(read_zip_member(archive, member, budget), budget, where=member.filename)


def _read_header(data: bytes, where: str) -> _Layout:
    """Parse magic, version, length and the three keys (the format of NEP 1)."""
    broken = MalformedSequence("the header of the array cannot be read; save it anew", where=where)
    if len(data) < 12:
        raise broken
    width = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    offset = 8 + width + length
    if data[6] not in (1, 2, 3) or length > _LONGEST_HEADER or offset > len(data):
        raise broken
    header = data[8 + width : offset]
    if not header.lstrip().startswith(b"{"):
        raise broken
    descr, order, shape = _DESCR.search(header), _ORDER.search(header), _SHAPE.search(header)
    if order is None or shape is None:
        raise broken
    if descr is None:
        raise MalformedSequence(f"a structured array holds no silhouettes; {_HOW}", where=where)
    boolean = _is_boolean(descr[1].decode("latin-1"), where)
    sides = tuple(int(side) for side in shape[1].replace(b" ", b"").split(b",") if side)
    if len(sides) != 3:
        raise MalformedSequence(
            f"the array has {len(sides)} dimensions instead of three; {_HOW}", where=where
        )
    return _Layout((sides[0], sides[1], sides[2]), order[1] == b"True", boolean, offset)


def _is_boolean(descr: str, where: str) -> bool:
    """Whether an accepted type is bool rather than uint8; every other type is refused."""
    if descr in _BYTES or descr in _BOOLEANS:
        return descr in _BOOLEANS
    if "O" in descr:
        raise UnsupportedSequence(
            "an array of Python objects is a pickle, which is never loaded; pack pickled "
            "silhouettes with `python -m training pack`, or " + _HOW,
            where=where,
        )
    if descr.lstrip("<>=|")[:1] in ("f", "c"):
        raise MalformedSequence(
            f"the array holds fractions ({_printable(descr)}); threshold it and {_HOW}", where=where
        )
    raise MalformedSequence(f"the array holds {_printable(descr)}; {_HOW}", where=where)


def _printable(descr: str) -> str:
    return "".join(letter for letter in descr if letter.isascii() and letter.isprintable())

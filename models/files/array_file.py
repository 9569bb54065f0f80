"""One array in a `.npy` file from a stranger (the format of numpy's NEP 1).

The header is matched, not evaluated, and nothing is allocated that only the header claims.
"""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC: Final = b"\x93NUMPY"
LONGEST_HEADER: Final = 4096  # bytes

_DESCR = re.compile(rb"['\"]descr['\"]:\s*['\"]([^'\"]{1,16})['\"]")
_ORDER = re.compile(rb"['\"]fortran_order['\"]:\s*(True|False)")
_SHAPE = re.compile(rb"['\"]shape['\"]:\s*\(([0-9, ]{0,200})\)")


class Header(NamedTuple):
    """What a `.npy` file claims.

    Attributes:
        descr: the type of number in numpy's notation; None for a structured array.
        fortran_order: whether the first axis varies fastest.
        shape: lengths of the axes.
        offset: position of the first number in the file, in bytes.
    """

    descr: str | None
    fortran_order: bool
    shape: tuple[int, ...]
    offset: int


def read_header(data: bytes) -> Header:
    """Parse magic, version, length and the three keys that every header has.

    Raises:
        ValueError: this is no such header.
    """
    broken = ValueError("its header is not that of an array")
    if len(data) < 12 or not data.startswith(MAGIC) or data[6] not in (1, 2, 3):
        raise broken
    width = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    offset = 8 + width + length
    header = data[8 + width : offset]
    descr, order, shape = _DESCR.search(header), _ORDER.search(header), _SHAPE.search(header)
    if length > LONGEST_HEADER or offset > len(data) or not header.lstrip().startswith(b"{"):
        raise broken
    if order is None or shape is None:
        raise broken
    return Header(
        None if descr is None else descr[1].decode("latin-1"),
        order[1] == b"True",
        tuple(int(length) for length in shape[1].replace(b" ", b"").split(b",") if length),
        offset,
    )


def read_array(
    data: bytes, dtype: npt.DTypeLike, shape: tuple[int | None, ...]
) -> npt.NDArray[np.generic]:
    """The array, a view of `data`.

    Args:
        data: the whole file.
        dtype: the type that the array must have.
        shape: the shape that the array must have; None is any length from 1 on.

    Raises:
        ValueError: the file holds another array, or not the bytes that its shape needs.
    """
    header = read_header(data)
    wanted = np.dtype(dtype)
    found = header.shape
    fits = len(found) == len(shape) and all(
        expected in (None, length) for length, expected in zip(found, shape, strict=False)
    )
    if _dtype(header.descr) != wanted or header.fortran_order or not fits:
        axes = ", ".join("n" if length is None else str(length) for length in shape)
        raise ValueError(
            f"{wanted} [{axes}] expected, not {_dtype(header.descr) or 'records'} {list(found)}"
        )
    if 0 in found or len(data) - header.offset != math.prod(found) * wanted.itemsize:
        raise ValueError(f"its bytes do not fill an array of shape {list(found)}")
    return np.frombuffer(data, wanted, offset=header.offset).reshape(found)


def _dtype(descr: str | None) -> np.dtype[np.generic] | None:
    if descr is None:
        return None
    try:
        return np.dtype(descr)
    except Exception as error:  # numpy parses the text: its errors are many
        raise ValueError(f"{descr!a} is no type of number") from error

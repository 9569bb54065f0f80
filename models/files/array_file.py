"""One array in a `.npy` file from somebody else, read without believing its header."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_array(
    data: bytes, dtype: npt.DTypeLike, shape: tuple[int | None, ...]
) -> npt.NDArray[np.generic]:
    """The array, a view of `data`; nothing is allocated that only its header claims.

    Args:
        data: the whole file.
        dtype: what it must hold.
        shape: what it must be; None is any length from 1 on.

    Raises:
        ValueError: it is no such array, in C order and as long as its shape says.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        found, fortran, kind = _HEADER_READERS[version](file)
    except Exception as error:  # numpy tokenizes the header as Python: its errors are many
        raise ValueError("its header is not that of an array") from error
    wanted = np.dtype(dtype)
    fits = len(found) == len(shape) and all(
        expected in (None, length) for length, expected in zip(found, shape, strict=False)
    )
    if kind != wanted or fortran or not fits:
        axes = ", ".join("n" if length is None else str(length) for length in shape)
        raise ValueError(f"{wanted} [{axes}] expected, not {kind} {list(found)}")
    raw = data[file.tell() :]
    if 0 in found or len(raw) != math.prod(found) * wanted.itemsize:
        raise ValueError(f"its bytes do not fill an array of shape {list(found)}")
    return np.frombuffer(raw, wanted).reshape(found)

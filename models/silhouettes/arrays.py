"""`.npy` and `.npz`: uint8 or bool arrays `[s, h, w]`, read without anything that unpickles."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator

import numpy as np

from models.files.array_file import read_header
from models.silhouettes.budget import Budget
from models.silhouettes.errors import MalformedSequence, UnsupportedSequence
from models.silhouettes.members import read_zip_member
from models.silhouettes.types import Frame

_HOW = "send uint8 or bool of shape [frames, rows, columns]"

_BYTES = frozenset({"|u1", "<u1", ">u1", "=u1", "u1", "uint8", "B"})
_BOOLEANS = frozenset({"|b1", "<b1", ">b1", "=b1", "b1", "bool", "?"})


def decode_npy(data: bytes, budget: Budget, *, where: str = "") -> Iterator[Frame]:
    """Read one array; what it costs is checked against its header before anything is copied.

    Booleans become 0 and 1; `decode` gives them full range.
    """
    try:
        header = read_header(data)
    except ValueError as error:
        raise MalformedSequence(
            "the header of the array cannot be read; save it anew", where=where
        ) from error
    if header.descr is None:
        raise MalformedSequence(f"a structured array holds no silhouettes; {_HOW}", where=where)
    boolean = _is_boolean(header.descr, where)
    if len(header.shape) != 3:
        raise MalformedSequence(
            f"the array has {len(header.shape)} dimensions instead of three; {_HOW}", where=where
        )
    frames, rows, columns = header.shape
    if frames == 0:
        raise MalformedSequence(f"the array has no frames; {_HOW}", where=where)
    budget.check_frame_count(frames)
    budget.check_sides(rows, columns, where=where)
    count = math.prod(header.shape)
    if len(data) - header.offset < count:
        raise MalformedSequence(
            "the array is cut short: its header promises more than the file holds", where=where
        )
    values = np.frombuffer(data, np.uint8, count, header.offset)
    array = values.reshape(header.shape, order="F" if header.fortran_order else "C")
    for frame in array:
        budget.take_frame(rows, columns, where=where)
        yield (frame != 0).view(np.uint8) if boolean else np.array(frame, order="C")


def decode_npz(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], budget: Budget
) -> Iterator[Frame]:
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

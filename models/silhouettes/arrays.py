"""`.npy` and `.npz`: arrays in any usual layout, read without anything that unpickles."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.files.array_file import Header, read_header
from models.silhouettes.budget import Budget
from models.silhouettes.colours import from_colours, from_opacity, narrowed
from models.silhouettes.errors import MalformedSequence, UnsupportedSequence
from models.silhouettes.members import read_zip_member, shown
from models.silhouettes.normalise import CUT_WIDTH, HEIGHT, WIDTH
from models.silhouettes.types import Frame

_HOW = "send uint8 or bool of shape [frames, rows, columns]"
_NUMBER = re.compile(r"[<>=|]?(?P<kind>[buif])(?P<size>[1248])")
_NAMES: Final = {"bool": "b1", "?": "b1", "uint8": "u1", "B": "u1"}
_CHANNELS = (3, 4)
_HEADER_BYTES = 4096
_UNEVEN: Final = 0.5  # spread of the areas of slices over their mean; frames of a walk: to 0.3
_MORE_EVEN: Final = 0.5  # of that, along the last axis, when frames are there


def decode_npy(
    data: bytes, budget: Budget, *, where: str = "", is_frame: bool = False
) -> Iterator[Frame]:
    """Read one array; what it costs is checked against its header before anything is copied.

    Accepted are bool, whole numbers (of 16 bits the upper 8 count) and fractions, in [0, 1] or
    [0, 255]; `[s, h, w]` or `[h, w, s]`, further axes of length 1, channels of colour and opacity;
    with `is_frame` also `[h, w]`. Booleans become 0 and 1; `decode` gives them full range.
    """
    header = _header(data, where)
    dtype = _dtype(header, where)
    count = int(np.prod(header.shape, dtype=object))
    shape = _frames_first(header.shape, is_frame, where)
    budget.check_frame_count(shape[0])
    if 0 in shape:
        budget.check_sides(shape[1], shape[2], where=where)
    if len(data) - header.offset < count * dtype.itemsize:
        raise MalformedSequence(
            "the array is cut short: its header promises more than the file holds", where=where
        )
    values = np.frombuffer(data, dtype, count, header.offset)
    array = values.reshape(header.shape, order="F" if header.fortran_order else "C")
    if _channels_first(header.shape):
        array = np.moveaxis(array, 1, -1)
    array = array.reshape(shape)
    factor = _factor(array, where)
    if len(shape) == 3 and not is_frame and _is_last_axis_time(array, budget):
        array = np.moveaxis(array, -1, 0)
    budget.check_frame_count(len(array))
    for frame in array:
        budget.take_frame(frame.shape[0], frame.shape[1], where=where)
        yield _as_frame(frame, factor)


def decode_npz(
    data: bytes, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], budget: Budget
) -> Iterator[Frame]:
    """Read the array `silhouettes`, or the only one of frames, or an array for each frame."""
    chosen = _to_read(archive, members)
    for member in chosen:
        content = read_zip_member(data, archive, member, budget)
        where = shown(member.filename)
        yield from decode_npy(content, budget, where=where, is_frame=len(chosen) > 1)
        budget.give_back(len(content))


def _to_read(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    named = [one for one in members if one.filename.removesuffix(".npy") == "silhouettes"]
    if named or len(members) == 1:
        return named or members
    axes: dict[int, list[zipfile.ZipInfo]] = {}
    for member in members:
        with archive.open(member) as stream:
            header = _header(stream.read(_HEADER_BYTES + 12), shown(member.filename))
        used = sum(length != 1 for length in header.shape)
        axes.setdefault(used, []).append(member)
    for used in (3, 2):  # a walk beside what is said of it, or frames beside that
        found = axes.get(used, [])
        if found:
            break
    if len(found) == 1 or (found and used == 2):
        return found
    raise MalformedSequence(
        f"the archive holds {len(members)} arrays; name the one to read 'silhouettes'"
    )


def _header(data: bytes, where: str) -> Header:
    try:
        return read_header(data)
    except ValueError as error:
        raise MalformedSequence(
            "the header of the array cannot be read; save it anew", where=where
        ) from error


def _dtype(header: Header, where: str) -> np.dtype[Any]:
    """The type of number, if it is one that can be silhouettes."""
    descr = header.descr
    if descr is None:
        raise MalformedSequence(f"a structured array holds no silhouettes; {_HOW}", where=where)
    if "O" in descr:
        raise UnsupportedSequence(
            "an array of Python objects is a pickle, which is never loaded; pack pickled "
            "silhouettes with `python -m training pack`, or " + _HOW,
            where=where,
        )
    name = _NAMES.get(descr, descr)
    found = _NUMBER.fullmatch(name)
    if found is None or (found["kind"] == "b") != (found["kind"] + found["size"] == "b1"):
        raise MalformedSequence(f"the array holds {_printable(descr)}; {_HOW}", where=where)
    try:
        return np.dtype(name)
    except TypeError as error:  # fractions of 8 bits
        raise MalformedSequence(
            f"the array holds {_printable(descr)}; {_HOW}", where=where
        ) from error


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] in _CHANNELS and shape[3] not in (1, *_CHANNELS)


def _frames_first(shape: tuple[int, ...], is_frame: bool, where: str) -> tuple[int, ...]:
    """A shape as `[s, h, w]` or, in colour, `[s, h, w, c]`."""
    axes = list(shape)
    if _channels_first(shape):
        axes.append(axes.pop(1))
    least = 2 if is_frame else 3
    while len(axes) > least and 1 in (axes[-1], axes[1], axes[0]):
        axes.pop(-1 if axes[-1] == 1 else 1 if axes[1] == 1 else 0)
    if is_frame and (len(axes) == 2 or (len(axes) == 3 and axes[2] in _CHANNELS)):
        axes.insert(0, 1)
    if len(axes) not in (3, 4) or (len(axes) == 4 and axes[3] not in _CHANNELS):
        raise MalformedSequence(f"the array has {len(shape)} dimensions; {_HOW}", where=where)
    if axes[0] == 0:
        raise MalformedSequence(f"the array has no frames; {_HOW}", where=where)
    return tuple(axes)


def _factor(array: NDArray[Any], where: str) -> float:
    """By what the values of an array are multiplied to be 0 to 255; 0 for the upper of 16 bits."""
    kind = array.dtype.kind
    if array.size == 0 or kind == "b" or array.dtype == np.uint8:
        return 1.0
    least, most = array.min(), array.max()
    if not (least >= 0 and most <= (0xFF if kind == "f" else 0xFFFF)):  # nor is NaN
        raise MalformedSequence(
            "the array holds values that are no silhouette's; send the person as 1 or 255 and the "
            "background as 0",
            where=where,
        )
    if kind == "f":
        return 255.0 if most <= 1 else 1.0
    return 1.0 if most <= 0xFF else 0.0


def _as_frame(frame: NDArray[Any], factor: float) -> Frame:
    """One `[h, w]` or `[h, w, c]` as uint8 `[h, w]` of its own."""
    if factor == 0:
        values = narrowed(frame)
    elif frame.dtype.kind == "f":
        values = (frame * factor + 0.5).astype(np.uint8)
    elif frame.dtype.kind == "b":
        values = (frame != 0).view(np.uint8)
    else:
        values = np.array(frame, np.uint8, order="C")
    if values.ndim == 2:
        return values
    read = from_colours if values.shape[2] == 3 else from_opacity
    return read(np.ascontiguousarray(values), smeared=False)


def _is_last_axis_time(array: NDArray[Any], budget: Budget) -> bool:
    """Whether an array `[a, b, c]` is `[h, w, s]`.

    The person's area is nearly the same in all frames, and in rows or columns anything.
    """
    normalised = {(HEIGHT, WIDTH), (HEIGHT, CUT_WIDTH)}
    if array.shape[1:] in normalised or array.shape[:2] in normalised:
        return array.shape[1:] not in normalised
    first = np.array([np.count_nonzero(part) for part in array], np.float64)
    if _spread(first) <= _UNEVEN:
        return False
    last = np.zeros(array.shape[2])
    for part in array:
        budget.check_time()
        last += np.count_nonzero(part, axis=0)
    return _spread(last) < _MORE_EVEN * _spread(first)


def _spread(areas: NDArray[np.float64]) -> float:
    mean = float(areas.mean()) if len(areas) else 0.0
    return float(areas.std()) / mean if mean else 0.0


def _printable(descr: str) -> str:
    return "".join(letter for letter in descr if letter.isascii() and letter.isprintable())

"""Read the one thing a silhouette pickle holds, a uint8 array, without running the pickle.

A pickle is a program. It may name only what numpy needs to store an array, and each of these names
stands for a record of ours: numpy's own functions trust their arguments, and a stranger's can
change numpy's types for the whole process. The array is built last, from bytes whose number, shape
and type have been checked.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt


class UnsafePickle(ValueError):
    """A pickle that is broken, or holds or does anything but storing one array of bytes."""


def read_pickled_array(data: bytes) -> npt.NDArray[np.uint8]:
    """The uint8 (or bool, as 0 and 1) array that numpy pickled, of any shape; read-only.

    Reads pickle protocols 0 to 5, as written by Python 2 and 3 and numpy 1 and 2.

    Raises:
        UnsafePickle: it is no such pickle.
    """
    try:
        # latin1: arrays pickled by Python 2 keep their bytes in a string.
        found = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except UnsafePickle:
        raise
    except Exception as error:  # the unpickler lets out whatever a malformed program provokes
        raise UnsafePickle(f"broken pickle ({type(error).__name__})") from error
    if not isinstance(found, _Array):
        raise UnsafePickle(f"it holds a {type(found).__name__}, not an array")
    return found.build()


class _Inert:
    """Stands for something a pickle names. It cannot be given a state."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise UnsafePickle("it changes a function")


class _Dtype:
    """The arguments of `numpy.dtype(code, align, copy)`. Its state, byte order, is of no use."""

    __slots__ = ("code",)

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """What numpy needs to make an array again: shape, element type, order and raw bytes."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, shape: Any = None, dtype: Any = None, fortran: Any = False, raw: Any = None):
        self.shape, self.dtype, self.fortran, self.raw = shape, dtype, fortran, raw

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise UnsafePickle("not the state of an array")
        self.shape, self.dtype, self.fortran, self.raw = state[-4:]  # before them: a version

    def build(self) -> npt.NDArray[np.uint8]:
        code = self.dtype.code if isinstance(self.dtype, _Dtype) else None
        if code not in ("u1", "b1", "|u1", "|b1"):
            raise UnsafePickle(f"an array of bytes (uint8) is expected, not of {code!r:.40}")
        shape = self.shape
        if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
            raise UnsafePickle("not the shape of an array")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        if not isinstance(raw, bytes | bytearray) or len(raw) != math.prod(shape):
            raise UnsafePickle(f"its bytes do not fill an array of shape {list(shape)}")
        array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if self.fortran else "C")
        array.flags.writeable = False
        return array


_ARRAY_TYPE = _Inert(lambda *_: _refuse())


def _refuse() -> NoReturn:
    raise UnsafePickle("it calls a function that is not part of an array")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(shape, dtype, order == "F", raw)


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        _refuse()
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], _Inert] = {
    ("numpy", "ndarray"): _ARRAY_TYPE,  # named as an argument only
    ("numpy", "dtype"): _Inert(_Dtype),
    ("numpy.core.multiarray", "_reconstruct"): _Inert(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Inert(_reconstruct),
    ("numpy.core.numeric", "_frombuffer"): _Inert(_frombuffer),
    ("numpy._core.numeric", "_frombuffer"): _Inert(_frombuffer),
    ("_codecs", "encode"): _Inert(_encode),
}


# The unpickler in Python: the one in C allocates its memo up to whatever index a pickle names.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> _Inert:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise UnsafePickle(f"it names {module}.{name}, which is not part of an array") from None

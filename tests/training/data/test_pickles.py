from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.pickles import UnsafePickle, read_pickled_array

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 64, 44), dtype=np.uint8)


class Calls:
    """Pickles to a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.how = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.how


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [FRAMES, np.asfortranarray(FRAMES), FRAMES[::2, ::-1], FRAMES > 99],
    ids=["plain", "fortran", "strided", "bool"],
)
def test_arrays_of_every_protocol_are_read(array: np.ndarray[Any, Any], protocol: int) -> None:
    found = read_pickled_array(pickle.dumps(array, protocol))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)
    with pytest.raises(ValueError, match="read-only"):
        found[...] = 0


def test_an_array_that_python_2_pickled_is_read() -> None:
    raw = bytes(range(256)) * 16
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b"
        b"\x87Rq\x03(K\x01K\x01K@K@\x87cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|"
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", 4096)
        + raw
        + b"tb."
    )
    found = read_pickled_array(data)
    assert found.shape == (1, 64, 64)
    assert found.tobytes() == raw


@pytest.mark.parametrize(
    "thing",
    [
        Calls(os.system, "touch HACKED"),
        Calls(builtins.eval, "open('HACKED', 'w')"),
        Calls(builtins.exec, "open('HACKED', 'w')"),
        Calls(builtins.getattr, np.ndarray, "dump"),
        Calls(functools.partial, print),
        Calls(np.memmap, "HACKED", "u1", "w+", 0, (9,)),
        Calls(np.save, "HACKED", FRAMES),
        Calls(np.load, "HACKED"),
        Calls(np.lib.format.open_memmap, "HACKED", "w+"),
        Calls(np.zeros, 10**12),
        Calls(np.ndarray, (10**12,), "u1"),
        Calls(np.ndarray, (1,), "O", b"\x41" * 8),
        Calls(np.dtype, "O"),
        Calls(io.FileIO, "HACKED", "w"),
        np.array([1, "two", None], dtype=object),
        np.array([Calls(os.system, "touch HACKED")], dtype=object),
        np.zeros(3, dtype=[("a", "u1"), ("b", "O")]),
        np.zeros((2, 64, 64), np.float32),
        np.zeros((2, 64, 64), np.int64),
        np.array(["text"]),
        np.uint8(3),
        [FRAMES, FRAMES],
        {"silhouettes": FRAMES},
        Path("HACKED"),
        b"bytes",
        None,
    ],
    ids=lambda thing: type(thing).__name__,  # an address in a name differs from process to process
)
def test_whatever_is_no_byte_array_is_refused_and_not_run(
    thing: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4, 5):
        with pytest.raises(UnsafePickle):
            read_pickled_array(pickle.dumps(thing, protocol))
    assert list(tmp_path.iterdir()) == []


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1I00\nI01\ntR"


def state(shape: bytes, raw: bytes, dtype: bytes = DTYPE) -> bytes:
    """An array's pickle, protocol 0 and some later instructions, with any shape and bytes."""
    return (
        b"\x80\x03" + RECONSTRUCT + b"cnumpy\nndarray\n(I0\ntC\x01b\x87R(K\x01" + shape + dtype
        + b"\x89" + raw + b"tb."
    )  # fmt: skip


def test_the_hand_made_pickle_is_read_when_it_is_right() -> None:
    assert read_pickled_array(state(b"(K\x02K\x02t", b"C\x04abcd")).tobytes() == b"abcd"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (state(b"(K\x02K\x03t", b"C\x04abcd"), "do not fill"),
        (state(b"(J\xff\xff\xff\xffK\x04t", b"C\x04abcd"), "shape"),
        (state(b"(\x88K\x04t", b"C\x04abcd"), "shape"),
        (state(b"(K\x02K\x02t", b"K\x04"), "do not fill"),
        (state(b"K\x04", b"C\x04abcd"), "shape"),
        (state(b"(K\x02K\x02t", b"C\x04abcd", b"N"), "bytes"),
        (state(b"(K\x02K\x02t", b"C\x04abcd", b"cnumpy\ndtype\n"), "bytes"),
        (state(b"(K\x02K\x02t", b"C\x04abcd", b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR"), "bytes"),
        (b"\x80\x03cnumpy\nndarray\n(K\x05tR.", "calls"),
        (b"\x80\x03cnumpy\nndarray\n.", "not an array"),
        (b"\x80\x03cnumpy\ndtype\n}b.", "changes a function"),
        (b"\x80\x03cnumpy\ndtype\nNb.", "changes a function"),
        (b"\x80\x03cnumpy\ndtype\nNX\x01\x00\x00\x00a\x86b.", "changes a function"),
        (b"\x80\x03cnumpy.core.multiarray\n_reconstruct\nNb.", "changes a function"),
        (b"\x80\x03" + RECONSTRUCT + b"(tRK\x05b.", "state"),
        (b"\x80\x03" + RECONSTRUCT + b"(tR.", "bytes"),
        (b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "calls"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10core.os.system.x\x93.", "numpy.core.os.system.x"),
        (b"ios\nsystem\n.", "os.system"),
        (b"\x80\x02\x82\x01.", "broken"),
        (b"\x80\x02Pname\n.", "broken"),
        (b"\x80\x02Kr\xff\xff\xff\xff.", "broken"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "not an array"),
        (b"K\x01p999999999999\n.", "not an array"),
        (b"\x80\x02" + b"K\x010" * 200 + b"K\x01.", "not an array"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "broken"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "broken"),
        (b"", "broken"),
        (b".", "broken"),
        (b"\x80\x09N.", "broken"),
        (b"not a pickle", "broken"),
    ],
)
def test_a_forged_pickle_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnsafePickle, match=reason):
        read_pickled_array(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_pickle_is_an_array_or_refused_and_nothing_else(data: st.DataObject) -> None:
    good = bytearray(pickle.dumps(FRAMES[:1, :4, :4], data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(good[: data.draw(st.integers(1, len(good)))])
    try:
        found = read_pickled_array(damaged)
    except UnsafePickle:
        return
    assert found.dtype == np.uint8


def test_reading_changes_nothing_that_the_next_reading_uses() -> None:
    """A pickle may set attributes of what it names; ours have none that could be set."""
    for name in (b"numpy\ndtype", b"numpy\nndarray", b"numpy.core.multiarray\n_reconstruct"):
        for change in (b"Nb.", b"N(tb.", b"N\x8c\x04_call\x86b."):
            with pytest.raises(UnsafePickle):
                read_pickled_array(b"\x80\x04c" + name + b"\n" + change)
    np.testing.assert_array_equal(read_pickled_array(pickle.dumps(FRAMES)), FRAMES)

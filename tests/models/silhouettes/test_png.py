from __future__ import annotations

import io
import itertools
import random
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.silhouettes import DecodeLimits, Frame, SequenceError, SequenceTooLarge, decode
from models.silhouettes.png import PlainPng

BEGIN: Final = b"\x89PNG\r\n\x1a\n"
ORIENTATION: Final = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def written(rows: Iterable[Sequence[int]], ways: Iterable[int]) -> bytes:
    """Rows of bytes, each written in one of the five ways (PNG, 9.2)."""
    content = bytearray()
    above: Sequence[int] = ()
    for row, way in zip(rows, ways, strict=True):
        content.append(way)
        for at, value in enumerate(row):
            left = row[at - 1] if at else 0
            up = above[at] if above else 0
            corner = above[at - 1] if above and at else 0
            nearest = min((left, up, corner), key=lambda one: abs(left + up - corner - one))
            expected = (0, left, up, (left + up) // 2, nearest)[way]
            content.append((value - expected) & 255)
        above = row
    return bytes(content)


def png(
    frame: Frame,
    ways: Sequence[int] = (),
    *,
    depth: int = 8,
    before: bytes = b"",
    after: bytes = b"",
    pieces: int = 1,
    header: bytes = bytes(3),
) -> bytes:
    rows, columns = frame.shape
    content = frame if depth == 8 else np.packbits(frame > 0, axis=1)
    packed = zlib.compress(written(content.tolist(), ways or [0] * rows))
    cuts = [len(packed) * at // pieces for at in range(pieces + 1)]
    return b"".join(
        [
            BEGIN,
            chunk(b"IHDR", struct.pack(">IIBB", columns, rows, depth, 0) + header),
            before,
            *(chunk(b"IDAT", packed[start:end]) for start, end in itertools.pairwise(cuts)),
            after,
            chunk(b"IEND", b""),
        ]
    )


def person(rows: int = 20, columns: int = 30) -> Frame:
    frame = np.zeros((rows, columns), np.uint8)
    frame[3:-4, 11:17] = 255
    frame[3:-4, 10] = 90
    return frame


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 20),
    depth=st.sampled_from([1, 8]),
    seed=st.integers(0, 2**32),
    ways=st.sampled_from([(0,), (1,), (0, 1), (2,), (0, 1, 2), (0, 1, 2, 3, 4)]),
    pieces=st.integers(1, 3),
    is_sparse=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_however_rows_are_written_pixels_are_those_that_pillow_reads(
    rows: int,
    columns: int,
    depth: int,
    seed: int,
    ways: tuple[int, ...],
    pieces: int,
    is_sparse: bool,
) -> None:
    drawn = random.Random(seed)  # noqa: S311
    frame = np.frombuffer(drawn.randbytes(rows * columns), np.uint8).reshape(rows, columns).copy()
    if is_sparse:
        frame[: rows // 3] = frame[:, : columns // 3] = frame[:, columns - columns // 4 :] = 0
    data = png(frame, drawn.choices(ways, k=rows), depth=depth, pieces=pieces)

    plain = PlainPng.of(data)
    assert plain is not None
    pixels = plain.unpack()

    expected = np.array(Image.open(io.BytesIO(data)).convert("L"))
    np.testing.assert_array_equal(pixels, expected)
    assert pixels is not None
    assert pixels.flags.writeable


def test_what_says_nothing_of_pixels_is_passed_over() -> None:
    said = chunk(b"pHYs", bytes(9)) + chunk(b"gAMA", struct.pack(">I", 45455))
    plain = PlainPng.of(png(person(), before=said))
    assert plain is not None
    np.testing.assert_array_equal(plain.unpack(), person())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(person(), header=b"\0\0\1"), id="interlaced"),
        pytest.param(png(person(), before=chunk(b"pHYs", bytes(5))), id="a chunk too short"),
        pytest.param(png(person(), before=chunk(b"eXIf", ORIENTATION)), id="turned"),
        pytest.param(png(person(), after=chunk(b"eXIf", ORIENTATION)), id="turned at the end"),
        pytest.param(png(person(), before=chunk(b"acTL", bytes(8))), id="an animation"),
        pytest.param(png(person()) + b"\0", id="something behind it"),
        pytest.param(png(person())[:-20], id="cut short"),
        pytest.param(png(person()).replace(b"IHDR\0\0\0\x1e", b"IHDR\0\0\0\x1d"), id="damaged"),
        pytest.param(png(person(), pieces=1025), id="crumbs"),
    ],
)
def test_what_is_not_that_plain_is_left_to_pillow(data: bytes) -> None:
    assert PlainPng.of(data) is None


@pytest.mark.parametrize("content", [b"\x05" + bytes(8), bytes(8)], ids=["unknown way", "too few"])
def test_pixels_that_are_written_wrongly_are_left_to_pillow(content: bytes) -> None:
    assert PlainPng(1, 8, False, zlib.compress(content)).unpack() is None


def test_a_file_that_unpacks_to_far_more_than_its_pixels_is_unpacked_no_further() -> None:
    bomb = zlib.compress(bytes(2**28))
    plain = PlainPng(8, 8, False, bomb)
    np.testing.assert_array_equal(plain.unpack(), np.zeros((8, 8), np.uint8))


def outcome(data: bytes) -> object:
    try:
        return [(frame.shape, frame.tobytes()) for frame in decode(data)]
    except SequenceError as error:
        return type(error), str(error)


def test_damaged_files_have_the_outcome_that_they_have_in_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = random.Random(7)  # noqa: S311
    files = [png(person(), drawn.choices(range(5), k=20), depth=depth) for depth in (1, 8)]
    damaged = []
    for _ in range(300):
        data = bytearray(drawn.choice(files))
        data[drawn.randrange(8, len(data))] = drawn.randrange(256)
        damaged.append(bytes(data[: drawn.choice([None, len(data) - 3, drawn.randrange(1, 90)])]))
    ours = [outcome(data) for data in damaged]

    monkeypatch.setattr(PlainPng, "of", lambda _data: None)
    assert ours == [outcome(data) for data in damaged]


def test_a_damaged_file_counts_as_one_frame() -> None:
    short = zlib.compress(bytes(21 * 5))
    data = png(person(20, 20))
    begin, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    cut = data[:begin] + chunk(b"IDAT", short) + data[end:]
    assert PlainPng.of(cut) is not None

    one = DecodeLimits(max_frames=1, max_decoded_bytes=400)
    assert outcome_within(cut, one) == outcome_within(cut, DecodeLimits())


def outcome_within(data: bytes, limits: DecodeLimits) -> object:
    try:
        return len(decode(data, limits))
    except SequenceError as error:
        return type(error), str(error)


def test_the_limits_are_asked_before_anything_is_unpacked() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBB", 5000, 2, 8, 0) + bytes(3))
    nothing = chunk(b"IDAT", zlib.compress(b""))
    with pytest.raises(SequenceTooLarge, match="over the limit of 4096"):
        decode(BEGIN + header + nothing + chunk(b"IEND", b""))

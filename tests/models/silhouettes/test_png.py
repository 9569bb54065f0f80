from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from models.silhouettes import DecodeLimits, Frame, SequenceError, decode
from models.silhouettes.budget import Budget
from models.silhouettes.png import decode_plain
from tests.models.silhouettes.uploads import image, walker

FRAME = walker(1)[0]


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(rows: Frame, columns: int, bits: int, *, beside: bytes = b"", interlaced: int = 0) -> bytes:
    """A PNG of filtered rows `[h, 1 + bytes]`, in two chunks of pixels."""
    header = struct.pack(">IIBBBBB", columns, len(rows), bits, 0, 0, 0, interlaced)
    packed = zlib.compress(rows.tobytes())
    parts = [chunk(b"IHDR", header), beside, chunk(b"IDAT", packed[:5]), chunk(b"IDAT", packed[5:])]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def plain(data: bytes) -> Frame | None:
    return decode_plain(data, Budget(DecodeLimits()), where="")


def by_pillow(data: bytes) -> Frame | str:
    """What a file that is not plain for having one more byte at its end is decoded to."""
    data += b"\0"
    assert plain(data) is None
    try:
        return decode(data)[0]
    except SequenceError as error:
        return str(error)


@pytest.mark.parametrize(
    "data",
    [
        image(FRAME, bits=1),
        image(Image.fromarray(FRAME).convert("1")),
        image(Image.fromarray(FRAME).convert("1"), dpi=(72, 72)),
        cv2.imencode(".png", FRAME)[1].tobytes(),
        cv2.imencode(".png", cv2.GaussianBlur(FRAME, (5, 5), 0))[1].tobytes(),
        cv2.imencode(".png", FRAME, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes(),
    ],
)
def test_what_is_commonly_saved_is_decoded_as_pillow_does(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data)[0], by_pillow(data))


def test_opencv_s_files_and_those_of_one_bit_need_no_pillow() -> None:
    assert plain(cv2.imencode(".png", FRAME)[1].tobytes()) is not None
    assert plain(cv2.imencode(".png", FRAME, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()) is not None


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("seed", range(20))
def test_rows_of_any_filter_and_content_are_decoded_as_pillow_does(bits: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 60, 2).tolist()
    rows = random.integers(0, 256, (height, 1 + (width * bits + 7) // 8), np.uint8)
    rows[:, 1:] *= random.random(rows[:, 1:].shape) < random.random()
    rows[:, 0] = random.integers(0, random.integers(1, 4), height)
    rows[0, 0] = 1
    data = png(rows, width, bits, beside=chunk(b"gAMA", bytes(4)))
    ours = plain(data)
    assert ours is not None
    np.testing.assert_array_equal(ours, by_pillow(data))


ROWS = np.zeros((16, 3), np.uint8)
WHOLE = png(ROWS, 16, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE[:20],
        WHOLE[:-1],
        WHOLE[:-12],
        WHOLE + b"\0",
        WHOLE.replace(b"IHDR", b"IHDr"),
        png(ROWS, 16, 1, interlaced=1),
        png(ROWS, 16, 2),
        png(ROWS, 17, 1),
        png(ROWS, 8, 1),
        png(ROWS[:, :2], 0, 1),
        png(np.full((16, 3), 3, np.uint8), 16, 1),
        png(ROWS, 16, 1, beside=chunk(b"tRNS", bytes(2))),
        png(ROWS, 16, 1, beside=chunk(b"gAMA", bytes(3))),
        png(ROWS, 16, 1, beside=chunk(b"IEND", b"")),
        png(ROWS, 16, 1, beside=chunk(b"IDAT", b"x")),
        png(ROWS, 16, 1, beside=chunk(b"IDAT", b"") * 5000),
        png(np.ones((5000, 2), np.uint8), 8, 1),
    ],
)
def test_what_is_not_plain_and_whole_is_left_to_pillow(data: bytes) -> None:
    assert plain(WHOLE) is not None
    assert plain(data) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_never_read(seed: int) -> None:
    random = np.random.default_rng(seed)
    data = bytearray(WHOLE)
    data[random.integers(8, len(data))] ^= 1 << random.integers(8)
    assert plain(bytes(data)) is None


def test_damage_that_the_checksums_of_chunks_cover_up_is_noticed_where_it_is_unpacked() -> None:
    packed = bytearray(zlib.compress(ROWS.tobytes()))
    packed[-1] ^= 1
    header = struct.pack(">IIBBBBB", 16, 16, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", bytes(packed)), chunk(b"IEND", b"")
    assert plain(b"\x89PNG\r\n\x1a\n" + b"".join(parts)) is None


def test_a_frame_costs_what_it_takes_and_nothing_if_it_is_left() -> None:
    budget = Budget(DecodeLimits(max_decoded_bytes=256))
    assert decode_plain(WHOLE + b"\0", budget, where="") is None
    assert budget.bytes_left == 256
    assert decode_plain(WHOLE, budget, where="") is not None
    assert budget.bytes_left == 0
    assert decode_plain(WHOLE, budget, where="") is None

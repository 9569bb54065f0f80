"""Stills and animations through Pillow, each format by its own class: nothing is guessed."""

from __future__ import annotations

import functools
import io
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from models.silhouettes.budget import Budget
from models.silhouettes.errors import MalformedSequence, SequenceTooLarge, UnsupportedSequence
from models.silhouettes.members import refusing
from models.silhouettes.sniff import Kind
from models.silhouettes.tiff import check_pages
from models.silhouettes.types import Frame

BRIGHT = 127
"""Above this a pixel of a lossy format is the person."""

_COLOURED = 32
"""Channels further apart than this are a colour, not a grey with noise in it."""

_READERS: dict[Kind, type[ImageFile.ImageFile]] = {
    Kind.PNG: PngImagePlugin.PngImageFile,
    Kind.JPEG: JpegImagePlugin.JpegImageFile,
    Kind.BMP: BmpImagePlugin.BmpImageFile,
    Kind.WEBP: WebPImagePlugin.WebPImageFile,
    Kind.TIFF: TiffImagePlugin.TiffImageFile,
    Kind.GIF: GifImagePlugin.GifImageFile,
}

_MOST_SCANS = 64
"""A progressive JPEG has about ten, and each costs as much as the whole image."""

_SAID: dict[Kind, tuple[bytes, ...]] = {
    Kind.JPEG: (b"Exif\0\0",),  # Pillow copies all of them for each
    Kind.PNG: (b"iCCP", b"iTXt", b"zTXt"),  # each is unpacked, to a mebibyte
}
_MOST_SAID = 128
"""What an image says of itself beside its pixels is in a few parts."""

_MOST_PIECES = 250_000
"""Chunks, segments or blocks of one file: Pillow goes through them, and keeps some, in Python."""

_LOSSY_TIFF = frozenset({"jpeg", "tiff_jpeg", "webp"})


def decode_still(data: bytes, kind: Kind, budget: Budget, *, where: str) -> Frame:
    """The one frame of an image out of an archive; an animation there is refused."""
    frames = decode_image(data, kind, budget, where=where)
    frame = next(frames)
    if next(frames, None) is not None:
        raise MalformedSequence(
            "an animation inside an archive; send it on its own, or its frames as single images",
            where=where,
        )
    return frame


def decode_image(data: bytes, kind: Kind, budget: Budget, *, where: str = "") -> Iterator[Frame]:
    """Every frame of an animation, or the one frame of a still."""
    _quieten_pillow()
    broken = f"{kind.value} that is damaged or cut short; save it again"
    _check_header(data, kind, budget, where, broken)
    with refusing(broken, where=where):
        image = _READERS[kind](_Watched(data, budget))
    lossy = kind is Kind.JPEG or (kind is Kind.WEBP and b"VP8 " in data)
    index = 0
    while True:
        # The sides come from headers; nothing has been decoded yet.
        frame_name = where or (f"frame {index + 1}" if index else "")
        budget.take_frame(image.height, image.width, where=frame_name)
        with refusing(broken, where=frame_name):
            _refuse_what_is_slow_or_wide(image, frame_name)
            image.load()
            values = _grey(image)
            if lossy or image.info.get("compression") in _LOSSY_TIFF:
                values = np.where(values > BRIGHT, np.uint8(255), np.uint8(0))
        yield values
        index += 1
        with refusing(broken, where=where or f"frame {index + 1}"):
            try:
                image.seek(index)
            except EOFError:
                return


def _check_header(data: bytes, kind: Kind, budget: Budget, where: str, broken: str) -> None:
    """Check in advance what Pillow would only show after it has allocated or spent long on it."""
    if kind is Kind.JPEG and data.count(b"\xff\xda") > _MOST_SCANS:
        raise SequenceTooLarge(
            f"a JPEG of more than {_MOST_SCANS} scans; save it as PNG", where=where
        )
    if sum(map(data.count, _SAID.get(kind, ()))) > _MOST_SAID:
        raise SequenceTooLarge(
            f"{kind.value} that says too much of itself; save it without metadata", where=where
        )
    with refusing(broken, where=where):
        if kind is Kind.WEBP:
            sides = _webp_sides(data)
            if sides is not None:
                budget.check_sides(*sides, where=where)
        elif kind is Kind.GIF:
            for count, (rows, columns) in enumerate(_gif_extents(data, budget), start=1):
                budget.check_frame_count(count)
                budget.check_sides(rows, columns, where=where)
        elif kind is Kind.TIFF:
            check_pages(data, budget, where=where)


def _webp_sides(data: bytes) -> tuple[int, int] | None:
    """Rows and columns from the first chunk of a WebP (RFC 9649), None when it has no known one."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return (
            int.from_bytes(data[27:30], "little") + 1,
            int.from_bytes(data[24:27], "little") + 1,
        )
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return ((bits >> 14) & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if chunk == b"VP8 ":
        columns, rows = struct.unpack_from("<HH", data, 26)
        return rows & 0x3FFF, columns & 0x3FFF
    return None


def _gif_extents(data: bytes, budget: Budget) -> Iterator[tuple[int, int]]:
    """Rows and columns that each frame of a GIF reaches to, told without decoding any."""

    def after_table(position: int, flags: int) -> int:
        return position + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)

    position = after_table(13, data[10])
    blocks = 0
    while position < len(data) and data[position] != 0x3B:
        if data[position] == 0x2C:
            left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, position + 1)
            yield top + rows, left + columns
            position = after_table(position + 10, flags) + 1
        elif data[position] == 0x21:
            position += 2
        else:
            return  # Pillow skips what it does not know, or refuses it
        while position < len(data) and data[position]:
            position += data[position] + 1
            blocks += 1
            budget.check_time()
        if blocks > _MOST_PIECES:
            raise _in_pieces()
        position += 1


class _Watched(io.BytesIO):
    """A file that Pillow reads within the budget's time, in a bounded number of steps.

    Whatever Pillow does in a loop of Python, it reads in each turn.
    """

    def __init__(self, data: bytes, budget: Budget) -> None:
        super().__init__(data)
        self._budget = budget
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads % 64 == 0:
            self._budget.check_time()
        if self._reads > 2 * _MOST_PIECES:
            raise _in_pieces()
        return super().read(size)


def _in_pieces() -> SequenceTooLarge:
    return SequenceTooLarge("an image made of too many pieces; save it again")


def _refuse_what_is_slow_or_wide(image: ImageFile.ImageFile, where: str) -> None:
    if image.mode == "F":
        raise MalformedSequence(
            "an image of fractions; threshold it and save it with 8 bits a pixel", where=where
        )
    if image.tile and image.tile[0].codec_name == "bmp_rle":
        # Pillow unpacks these in Python, a pixel at a time.
        raise UnsupportedSequence("a compressed BMP; save it uncompressed or as PNG", where=where)


def _grey(image: Image.Image) -> Frame:
    """One loaded image as uint8 `[h, w]`.

    Grey stays as it is and 16 bits lose the lower 8 (unless no value needs more than 8). A coloured
    pixel is a label: it counts as white. Where an image is partly transparent, its opacity is the
    silhouette, unless what is opaque is itself black and white.
    """
    if image.mode in ("L", "1"):
        return np.array(image if image.mode == "L" else image.convert("L"))
    if image.mode.startswith("I"):
        return _from_wide(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        return _with_opacity(_from_colours(image), np.array(image.getchannel("A")))
    return _from_colours(image if image.mode == "RGB" else image.convert("RGB"))


def _from_wide(values: NDArray[np.integer[Any]]) -> Frame:
    highest = int(values.max())
    if values.min() < 0 or highest > 0xFFFF:
        raise MalformedSequence("an image of more than 16 bits a pixel; save it with 8")
    return (values >> 8 if highest > 0xFF else values).astype(np.uint8)


def _from_colours(image: Image.Image) -> Frame:
    red, green, blue = (np.array(image.getchannel(name)) for name in "RGB")
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    return np.where(brightest - darkest > _COLOURED, np.uint8(255), brightest)


def _with_opacity(grey: Frame, opacity: Frame) -> Frame:
    if opacity.min() == 255:
        return grey
    drawn = grey[opacity > BRIGHT]
    white, black = drawn > 223, drawn < 32
    if white.any() and black.any() and np.count_nonzero(white | black) > 0.9 * drawn.size:
        return np.where(opacity > BRIGHT, grey, np.uint8(0))
    return opacity


@functools.cache
def _quieten_pillow() -> None:
    """Keep Pillow's remarks on odd files off stderr: what matters is raised as our own error.

    A filter for that one package, put in place on first use: `warnings.catch_warnings` is not safe
    with threads.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")

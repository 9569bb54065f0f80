"""Stills and animations through Pillow, each format by its own class: nothing is guessed."""

from __future__ import annotations

import functools
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from models.silhouettes.budget import Budget
from models.silhouettes.colours import from_colours, from_opacity, narrowed
from models.silhouettes.errors import MalformedSequence, SequenceTooLarge, UnsupportedSequence
from models.silhouettes.members import refusing
from models.silhouettes.png import PlainPng
from models.silhouettes.sniff import Kind
from models.silhouettes.tiff import check_pages
from models.silhouettes.types import Frame

Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 `[h, w]` of a silhouette, `[h, w, 3]` of a photo."""

Reading: TypeAlias = Callable[[Image.Image | Frame, bool], Pixels]
"""What becomes of a loaded image, or of the frame that it holds; the second argument is whether its
format is a lossy one."""

BRIGHT = 127
"""Above this a pixel is the person, unless the values of a sequence are labels."""

NOISE = 32
"""Below this a pixel of a lossy format is background that its codec has smeared."""

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


def as_silhouette(image: Image.Image | Frame, smeared: bool) -> Pixels:
    """A loaded image as uint8 `[h, w]`, without what a lossy format leaves on black."""
    values = _grey(image, smeared)
    return without_noise(values) if smeared else values


def as_photo(image: Image.Image | Frame, _smeared: bool) -> Pixels:
    """A loaded image as uint8 `[h, w, 3]`, blue first; of one that is cut out, the opacity."""
    if isinstance(image, np.ndarray) or image.mode.startswith("I"):
        return cv2.merge([_grey(image, False)] * 3)  # type: ignore[return-value]
    rgba = np.asarray(image.convert("RGBA"))
    if rgba[..., 3].min() < 255:
        return np.repeat(rgba[..., 3:], 3, axis=2)
    return np.ascontiguousarray(rgba[..., 2::-1])


def decode_still(
    data: bytes, kind: Kind, budget: Budget, *, where: str, read: Reading = as_silhouette
) -> Pixels:
    """The one frame of an image out of an archive; an animation there is refused."""
    frames = decode_image(data, kind, budget, where=where, read=read)
    frame = next(frames)
    if next(frames, None) is not None:
        raise MalformedSequence(
            "an animation inside an archive; send it on its own, or its frames as single images",
            where=where,
        )
    return frame


def decode_image(
    data: bytes, kind: Kind, budget: Budget, *, where: str = "", read: Reading = as_silhouette
) -> Iterator[Pixels]:
    """Every frame of an animation, or the one frame of a still."""
    plain = PlainPng.of(data) if kind is Kind.PNG else None
    if plain is not None:
        budget.take_frame(plain.rows, plain.columns, where=where)
        pixels = plain.unpack()
        if pixels is not None:
            yield read(pixels, False)
            return
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
        if plain is None or index:  # else it was taken above
            budget.take_frame(image.height, image.width, where=frame_name)
        with refusing(broken, where=frame_name):
            _refuse_what_is_slow_or_wide(image, frame_name)
            image.load()
            smeared = lossy or image.info.get("compression") in _LOSSY_TIFF
            values = turned(read(image, smeared), _orientation(image))
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


def without_noise(values: Frame) -> Frame:
    """A frame of a lossy format without what its codec leaves on a black background."""
    return np.asarray(cv2.threshold(values, NOISE, 0, cv2.THRESH_TOZERO)[1], np.uint8)


def turned(frame: Pixels, orientation: int) -> Pixels:
    """A frame as a viewer shows it, by the orientation that Exif gives it: 1 to 8."""
    if orientation in (5, 6, 7, 8):
        frame = frame.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        frame = frame[:, ::-1]
    if orientation in (3, 4, 7, 8):
        frame = frame[::-1]
    return np.ascontiguousarray(frame)


def _orientation(image: ImageFile.ImageFile) -> int:
    """How a viewer turns a loaded image; Pillow has turned a TIFF itself."""
    said = image.info.get("exif")
    if not said or image.format == "TIFF":
        return 1
    exif = Image.Exif()
    exif.load(said)
    return int(exif.get(ExifTags.Base.Orientation, 1))


def _grey(image: Image.Image | Frame, smeared: bool) -> Frame:
    """One loaded image as uint8 `[h, w]`; `colours` says what becomes of colours and opacity."""
    if isinstance(image, np.ndarray):
        return image
    if image.mode in ("L", "1"):
        return np.array(image if image.mode == "L" else image.convert("L"))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise MalformedSequence("an image of more than 16 bits a pixel; save it with 8")
        return narrowed(values)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return from_opacity(np.asarray(image.convert("RGBA")), smeared)
    return from_colours(np.asarray(image.convert("RGB")), smeared)


@functools.cache
def _quieten_pillow() -> None:
    """Keep Pillow's remarks on odd files off stderr: what matters is raised as our own error.

    A filter for that one package, put in place on first use: `warnings.catch_warnings` is not safe
    with threads.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")

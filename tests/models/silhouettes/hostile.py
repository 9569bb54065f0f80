"""Small files that would have a decoder keep, copy or go through very much."""

from __future__ import annotations

import gzip
import struct
import tarfile
import zlib

import numpy as np

from tests.models.silhouettes.uploads import animation, image, images, tarred, video, walker

WALK = walker(6)
FRAME = WALK[0]


def directory(name: bytes, comment: bytes = b"", *, count: int = 1000) -> bytes:
    """A gzipped zip of nothing but a directory, whose entries say more than they compress to."""
    entry = struct.pack(
        "<4s6H3I5H2I",
        *(b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0),
        *(len(name), 0, len(comment), 0, 0, 0, 0),
    )
    entries = (entry + name + comment) * count
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(entries), 30, 0)
    return gzip.compress(b"PK\x03\x04" + bytes(26) + entries + end, 1)


def header(kind: bytes, content: bytes = b"", name: str = "0.png") -> bytes:
    """A header of a tar, and what comes after it."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def says(*pairs: tuple[str, str]) -> bytes:
    """The content of an extended header."""
    lines = [f" {key}={value}\n" for key, value in pairs]
    return b"".join(f"{len(line) + 2 + (len(line) > 7)}{line}".encode() for line in lines)


def sparse_in_many_parts() -> bytes:
    """A sparse file in the old way, whose list goes on for ever."""
    start = bytearray(header(tarfile.GNUTYPE_SPARSE))
    start[482] = 1
    start[148:156] = b" " * 8
    start[148:156] = b"%06o\0 " % sum(start)
    part = b"00000000001\0" * 42 + b"\x01" + bytes(7)
    return bytes(start) + part * 50


def sparse_in_a_list() -> bytes:
    """A sparse file in the new way, whose list is its content."""
    words = says(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "x"))
    return header(tarfile.XHDTYPE, words) + header(tarfile.REGTYPE, b"9999999\n" + b"1\n" * 5000)


def told_of_all(count: int) -> bytes:
    """A tar of headers that hold for every file after them."""
    words = says(*((f"k{index}", "") for index in range(60)))
    return header(tarfile.XGLTYPE, words) * count + tarred(images(WALK))


def tiff(*tags: tuple[int, int, int, int], content: bytes = b"") -> bytes:
    """A TIFF of 16 x 16 pixels with the tags given (number, type, count, value) beside its own."""
    own = ((256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted((*own, *tags)))
    count = len(own) + len(tags)
    return struct.pack("<2sHIH", b"II", 42, 8, count) + entries + bytes(4) + content


def tiled_tiff(side: int = 32768, kind: int = 4) -> bytes:
    """A small TIFF in one tile of a gigabyte."""
    tile = ((322, kind, 1, side), (323, kind, 1, side), (324, 4, 1, 200), (325, 4, 1, 100))
    return tiff((259, 3, 1, 8), *tile, content=bytes(300))


def striped_tiff(count: int = 10**6) -> bytes:
    """A small TIFF in a million strips, each of which Pillow makes an object of."""
    strips = (273, 4, count, 200), (279, 4, count, 200), (278, 3, 1, 1)
    return tiff((259, 3, 1, 1), *strips, content=bytes(4 * count + 300))


def png_of_many_chunks() -> bytes:
    chunk = struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))
    data = image(FRAME)
    return data[:33] + chunk * 300_000 + data[33:]


def png_of_many_profiles() -> bytes:
    """Each profile unpacks to nearly a mebibyte."""
    content = b"iCCPsRGB\0\0" + zlib.compress(bytes(10**6))
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    data = image(FRAME)
    return data[:33] + chunk * 1000 + data[33:]


def gif_of_many_blocks() -> bytes:
    data = animation(WALK, "GIF")
    start = data.index(b"\x21\xf9")
    return data[:start] + b"\x21\xfe" + b"\x01 " * 300_000 + b"\0" + data[start:]


def jpeg_of_many_exif() -> bytes:
    data = image(FRAME, "JPEG")
    return data[:2] + (b"\xff\xe1\x00\x10Exif\0\0" + bytes(8)) * 200 + data[2:]


def references(count: int = 16, side: int = 2048) -> bytes:
    """A video whose decoder may keep 16 pictures of 6 bytes a pixel; it takes no time to write."""
    options = {"preset": "ultrafast", "x264-params": f"ref={count}"}
    return video([np.zeros((side, side), np.uint8)], "mp4", "libx264", "yuv444p10le", **options)

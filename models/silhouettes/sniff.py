"""What a file is, told by its first bytes."""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """A kind of file this package knows, accepted or not; the value is its name for people."""

    ZIP = "a zip archive"
    TAR = "a tar archive"
    GZIP = "a gzip file"
    NPY = "a NumPy array"
    PNG = "a PNG image"
    JPEG = "a JPEG image"
    BMP = "a BMP image"
    WEBP = "a WebP image"
    TIFF = "a TIFF image"
    GIF = "a GIF image"
    MP4 = "an MP4 video"
    AVI = "an AVI video"
    MATROSKA = "a WebM video"
    PICKLE = "a Python pickle"
    UNKNOWN = "no image"


STILLS = frozenset({Kind.PNG, Kind.JPEG, Kind.BMP, Kind.WEBP, Kind.TIFF})
VIDEOS = frozenset({Kind.MP4, Kind.AVI, Kind.MATROSKA})
ARCHIVES = frozenset({Kind.ZIP, Kind.TAR, Kind.GZIP})

_PREFIXES: tuple[tuple[bytes, Kind], ...] = (
    (b"PK\x03\x04", Kind.ZIP),
    (b"PK\x05\x06", Kind.ZIP),  # a zip of nothing
    (b"\x1f\x8b", Kind.GZIP),
    (b"\x93NUMPY", Kind.NPY),
    (b"\x89PNG\r\n\x1a\n", Kind.PNG),
    (b"\xff\xd8\xff", Kind.JPEG),
    (b"GIF87a", Kind.GIF),
    (b"GIF89a", Kind.GIF),
    (b"II*\x00", Kind.TIFF),
    (b"MM\x00*", Kind.TIFF),
    (b"\x1aE\xdf\xa3", Kind.MATROSKA),
    (b"BM", Kind.BMP),
    *((b"\x80" + bytes([protocol]), Kind.PICKLE) for protocol in range(2, 6)),
    # Protocols 0 and 1, Python 2's own, only begin: with an array, a list or a mapping.
    *((start, Kind.PICKLE) for start in (b"cnumpy.", b"(lp", b"(dp", b"]q", b"}q")),
)


def sniff(data: bytes) -> Kind:
    """Tell the kind of a file from its content; its name plays no part."""
    for prefix, kind in _PREFIXES:
        if data.startswith(prefix):
            return kind
    if data.startswith(b"RIFF"):
        return {b"WEBP": Kind.WEBP, b"AVI ": Kind.AVI}.get(data[8:12], Kind.UNKNOWN)
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return Kind.MP4
    if data[257:262] == b"ustar":
        return Kind.TAR
    return Kind.UNKNOWN

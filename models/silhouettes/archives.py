"""Zip and tar archives of images, and the `.npz` that is a zip of arrays."""

from __future__ import annotations

import io
import zipfile
import zlib

from models.silhouettes.arrays import decode_npz
from models.silhouettes.budget import Budget
from models.silhouettes.errors import MalformedSequence, UnsupportedSequence
from models.silhouettes.frame import Frame
from models.silhouettes.images import decode_still
from models.silhouettes.members import (
    check_directory,
    read_zip_member,
    refusing,
    shown,
    tar_members,
    zip_members,
)
from models.silhouettes.sniff import ARCHIVES, STILLS, Kind, sniff

_CHUNK = 2**20
_STRAYS_PER_FRAME = 4

PICKLED = (
    "a Python pickle, which is never loaded; pack pickled silhouettes with "
    "`python -m training pack`, convert an OpenGait checkpoint with `gaitid import-opengait`"
)
_DAMAGED_ZIP = "the archive is damaged or cut short; pack it again"
_EMPTY = "the archive holds no images"


def decode_zip(data: bytes, budget: Budget) -> list[Frame]:
    """The images of a zip in natural order of names, or the array of an `.npz`."""
    check_directory(data, most=_most_members(budget))
    with refusing(_DAMAGED_ZIP), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = zip_members(archive, budget)
        if any(member.filename.endswith("/data.pkl") for member in members):
            raise UnsupportedSequence(PICKLED)  # what torch.save writes
        if members and all(_is_array(archive, member) for member in members):
            return decode_npz(archive, members, budget)
        budget.check_frame_count(len(members))
        if not members:
            raise MalformedSequence(_EMPTY)
        return [
            _decode_member(read_zip_member(archive, member, budget), budget, shown(member.filename))
            for member in members
        ]


def decode_tar(data: bytes, budget: Budget) -> list[Frame]:
    """The images of an uncompressed tar in natural order of names."""
    members = tar_members(data, budget, most=_most_members(budget))
    budget.check_frame_count(len(members))
    if not members:
        raise MalformedSequence(_EMPTY)
    return [
        _decode_member(
            data[member.offset_data : member.offset_data + member.size], budget, shown(member.name)
        )
        for member in members
    ]


def decode_gzip(data: bytes, budget: Budget) -> list[Frame]:
    """A gzipped tar or zip."""
    content = _decompress(data, budget)
    kind = sniff(content)
    if kind is Kind.TAR:
        return decode_tar(content, budget)
    if kind is Kind.ZIP:
        return decode_zip(content, budget)
    if kind is Kind.PICKLE:
        raise UnsupportedSequence(PICKLED)
    raise UnsupportedSequence(
        "a gzip file that holds no tar or zip archive; send the file uncompressed"
    )


def _most_members(budget: Budget) -> int:
    return budget.limits.max_frames * _STRAYS_PER_FRAME


def _is_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    with archive.open(member) as stream:
        return sniff(stream.read(16)) is Kind.NPY


def _decode_member(content: bytes, budget: Budget, where: str) -> Frame:
    kind = sniff(content)
    if kind in STILLS:
        return decode_still(content, kind, budget, where=where)
    if kind is Kind.PICKLE:
        raise UnsupportedSequence(PICKLED, where=where)
    if kind in ARCHIVES:
        raise UnsupportedSequence(
            "an archive inside an archive; pack the images directly", where=where
        )
    if kind is Kind.UNKNOWN:
        raise UnsupportedSequence(
            "not an image; pack PNG, JPEG, BMP, WebP or TIFF images only", where=where
        )
    raise UnsupportedSequence(
        f"{kind.value} inside an archive; send it on its own, or pack PNG images", where=where
    )


def _decompress(data: bytes, budget: Budget) -> bytes:
    """Unpack a gzip file of any number of members (RFC 1952), a chunk at a time."""
    content = io.BytesIO()
    rest = data
    with refusing("the gzip file is damaged or cut short; compress it again"):
        while rest:
            stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            while not stream.eof:
                budget.check_time()
                chunk = stream.decompress(rest, _CHUNK)
                rest = stream.unconsumed_tail
                if not chunk and not rest and not stream.eof:
                    raise EOFError
                budget.take_bytes(len(chunk))
                content.write(chunk)
            rest = stream.unused_data.lstrip(b"\0")  # tar pads what it compresses
    return content.getvalue()

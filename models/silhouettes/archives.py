"""Zip and tar archives of images, and the `.npz` that is a zip of arrays."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator

from models.silhouettes.arrays import decode_npy, decode_npz
from models.silhouettes.budget import Budget
from models.silhouettes.errors import MalformedSequence, SequenceTooLarge, UnsupportedSequence
from models.silhouettes.images import Pixels, Reading, as_silhouette, decode_still
from models.silhouettes.members import (
    check_directory,
    read_zip_member,
    refusing,
    shown,
    tar_members,
    zip_members,
)
from models.silhouettes.quality import LEAST_FRAMES, refused
from models.silhouettes.sniff import ARCHIVES, STILLS, Kind, sniff

_CHUNK = 2**20
_PIECE = 2**16
_MOST_GZIP_MEMBERS = 2**14  # some compressors end one every 64 KiB
_ZEROS = re.compile(rb"\0*")

PICKLED = (
    "a Python pickle, which is never loaded; pack pickled silhouettes with "
    "`python -m training pack`, convert an OpenGait checkpoint with `gaitid import-opengait`"
)
_DAMAGED_ZIP = "the archive is damaged or cut short; pack it again"
_EMPTY = "the archive holds no images"


def decode_zip(data: bytes, budget: Budget, read: Reading = as_silhouette) -> Iterator[Pixels]:
    """The images of a zip in natural order of names, or the array of an `.npz`."""
    check_directory(data, budget)
    with refusing(_DAMAGED_ZIP), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = zip_members(archive, budget)
        if any(member.filename.endswith("/data.pkl") for member in members):
            raise UnsupportedSequence(PICKLED)  # what torch.save writes
        if members and all(_is_array(archive, member) for member in members):
            yield from decode_npz(data, archive, members, budget)
            return
        if not members:
            raise MalformedSequence(_EMPTY)
        _refuse_several_walks([member.filename for member in members])
        for member in members:
            content = read_zip_member(data, archive, member, budget)
            frame = _decode_member(content, budget, shown(member.filename), read)
            budget.give_back(len(content))
            yield frame


def decode_tar(data: bytes, budget: Budget, read: Reading = as_silhouette) -> Iterator[Pixels]:
    """The images of an uncompressed tar in natural order of names."""
    members = tar_members(data, budget)
    if not members:
        raise MalformedSequence(_EMPTY)
    _refuse_several_walks([member.name for member in members])
    for member in members:
        content = data[member.offset_data : member.offset_data + member.size]
        yield _decode_member(content, budget, shown(member.name), read)


def decode_gzip(data: bytes, budget: Budget, read: Reading = as_silhouette) -> Iterator[Pixels]:
    """A gzipped tar or zip."""
    content = _decompress(data, budget)
    kind = sniff(content)
    if kind is Kind.TAR:
        return decode_tar(content, budget, read)
    if kind is Kind.ZIP:
        return decode_zip(content, budget, read)
    if kind is Kind.PICKLE:
        raise UnsupportedSequence(PICKLED)
    raise UnsupportedSequence(
        "a gzip file that holds no tar or zip archive; send the file uncompressed"
    )


def _is_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    with archive.open(member) as stream:
        return sniff(stream.read(16)) is Kind.NPY


def _refuse_several_walks(names: list[str]) -> None:
    """Folders of an archive hold a walk each, if they hold enough frames for one."""
    folders = Counter(name.rpartition("/")[0] for name in names)
    walks = sum(count >= LEAST_FRAMES for count in folders.values())
    if walks > 1:
        raise refused(("several_walks",), frames_in=len(names))


def _decode_member(content: bytes, budget: Budget, where: str, read: Reading) -> Pixels:
    kind = sniff(content)
    if kind in STILLS:
        return decode_still(content, kind, budget, where=where, read=read)
    if kind is Kind.NPY:
        frames = decode_npy(content, budget, where=where, is_frame=True)
        frame = next(frames)
        if next(frames, None) is not None:
            raise MalformedSequence(
                "an array of several frames inside an archive; send it on its own", where=where
            )
        return frame
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
    """Unpack a gzip file of several members (RFC 1952), a chunk at a time.

    It is fed in pieces, because zlib copies what it leaves of one.
    """
    content = io.BytesIO()
    position = members = 0
    with refusing("the gzip file is damaged or cut short; compress it again"):
        while position < len(data):
            members += 1
            if members > _MOST_GZIP_MEMBERS:
                raise SequenceTooLarge("the gzip file has too many parts; compress it in one")
            stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            while not stream.eof:
                budget.check_time()
                piece = stream.unconsumed_tail
                if not piece:
                    piece = data[position : position + _PIECE]
                    position += len(piece)
                chunk = stream.decompress(piece, _CHUNK)
                if not chunk and not piece and not stream.eof:
                    raise EOFError
                budget.take_bytes(len(chunk))
                content.write(chunk)
            padding = _ZEROS.match(data, position - len(stream.unused_data))
            position = padding.end() if padding else len(data)  # tar pads what it compresses
    return content.getvalue()

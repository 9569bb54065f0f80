"""Members of archives, with names that are checked and sizes that are not believed."""

from __future__ import annotations

import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from zlib_ng import zlib_ng

from models.silhouettes.budget import Budget
from models.silhouettes.errors import (
    MalformedSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
)

_CHUNK = 2**20
_STRAY_NAMES = frozenset({"thumbs.db", "desktop.ini"})
_EXTENDED = frozenset(
    {
        *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
        *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    }
)
_LONGEST_EXTENDED = 4096
_LONGEST_GLOBAL = 1024  # together; every member gets a copy of what they say
_HEADERS_PER_MEMBER = 4  # of a tar: its own, and what extends it
_LONGEST_NAME = 4096  # bytes, and of a part of it: more than file systems allow
_LONGEST_PART = 255
_DIRECTORY_PER_MEMBER = 512  # bytes of a zip's directory
_ZIP_END = re.compile(rb"PK\x05\x06|PK\x06\x06")
_ZIP_TAIL = (
    2**16 + 22 + 76
)  # bytes in which a zip's end may begin: with a comment, and of a large zip
_STRAYS_PER_FRAME = 4
_LOCAL_HEADER: Final = 30  # bytes of what a zip says right before a member, without its name
_PLAIN_FLAGS: Final = 0x080E  # how well it was compressed, sizes behind it, names in UTF-8
_DRIVE = re.compile(r"[A-Za-z]:")

_TOO_MANY = "the archive holds too many files; send a part of the walk"
_NO_PLAIN_FILE = "the archive holds something that is no plain file; pack images only"
NO_MEMORY = "it takes more memory than one sequence may; send fewer or smaller frames"


@contextmanager
def refusing(reason: str, *, where: str = "") -> Iterator[None]:
    """Turn whatever a library raises over hostile bytes into one MalformedSequence.

    Decoders raise nearly everything over broken input (struct.error, KeyError, RecursionError,
    their own), so there is no shorter list to catch. Nothing of their text is shown; the original
    stays as the cause. Memory that ran out says nothing about the bytes but that they want much.
    """
    try:
        yield
    except SequenceError:
        raise
    except MemoryError as error:
        raise SequenceTooLarge(NO_MEMORY, where=where) from error
    except Exception as error:
        raise MalformedSequence(reason, where=where) from error


def shown(name: str) -> str:
    """A member's name fit for a message: printable and short."""
    printable = name
    if not name.isprintable():
        printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    return printable if len(printable) <= 120 else f"{printable[:117]}..."


def natural_key(name: str) -> str:
    """Order names as people number them: `2.png` before `10.png`.

    Numbers compare by length, then digits, so that no length of number has to be converted. The
    key is hardly longer than the name: each number has its length, as one letter, put before it,
    and before that what sorts before every letter.
    """

    def with_length(number: re.Match[str]) -> str:
        digits = number[0].lstrip("0")
        return f"\0{chr(len(digits))}{digits}"

    return re.sub("[0-9]+", with_length, name.casefold())


def is_stray(name: str) -> bool:
    """Whether a member is what file managers leave: `__MACOSX/`, `.DS_Store`, `Thumbs.db`."""
    parts = name.split("/")
    return parts[-1].startswith(".") or parts[-1].casefold() in _STRAY_NAMES or "__MACOSX" in parts


def most_members(budget: Budget) -> int:
    """How many members an archive may have, files that are no frames and folders among them."""
    return budget.limits.max_frames * _STRAYS_PER_FRAME


def check_name(name: str) -> None:
    """Refuse a name that is no honest file's: too long for one, or it points outside.

    Nothing is ever written, but names are split, sorted and shown.
    """
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) > _LONGEST_NAME or max(map(len, encoded.split(b"/"))) > _LONGEST_PART:
        raise SequenceTooLarge(
            "the archive holds a name that is too long; pack it again with short names",
            where=shown(name[:_LONGEST_PART]),
        )
    path = name.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path) or ".." in path.split("/"):
        raise MalformedSequence(
            "the archive holds a name that points outside it; pack it again with plain names",
            where=shown(name),
        )


def check_directory(data: bytes, budget: Budget) -> None:
    """Refuse a zip whose directory is long, before zipfile builds an object for each entry of it.

    Raises:
        SequenceTooLarge: it has too many entries, or says too much about them.
    """
    most = most_members(budget)
    if data.count(b"PK\x01\x02") > most:
        raise SequenceTooLarge(_TOO_MANY)
    for end in _ZIP_END.finditer(data, max(0, len(data) - _ZIP_TAIL)):
        at, width = (12, 4) if end[0] == b"PK\x05\x06" else (40, 8)
        at += end.start()
        if int.from_bytes(data[at : at + width], "little") > most * _DIRECTORY_PER_MEMBER:
            raise SequenceTooLarge(
                "the archive's directory is too long; pack it again with short names and no "
                "comments"
            )


def zip_members(archive: zipfile.ZipFile, budget: Budget) -> list[zipfile.ZipInfo]:
    """The regular members that are not strays, in natural order of names, none of them read yet."""
    members = []
    for member in archive.infolist():
        budget.check_time()
        check_name(member.filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _link(member.filename)
        if member.is_dir() or is_stray(member.filename):
            continue
        if member.flag_bits & 0x1:
            raise UnsupportedSequence(
                "the archive is encrypted; send it without a password",
                where=shown(member.filename),
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # The others hand out a chunk's whole expansion at once, however much that is.
            raise UnsupportedSequence(
                "the archive is not compressed with deflate; pack it as a plain zip",
                where=shown(member.filename),
            )
        members.append(member)
        budget.check_frame_count(len(members))
    return sorted(members, key=lambda member: natural_key(member.filename))


def read_zip_member(
    data: bytes, archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget
) -> bytes:
    """Read one member of an archive in `data`: at once if it is what the archive says of it.

    Else a chunk at a time, whatever size the archive claims for it.
    """
    where = shown(member.filename)
    if member.file_size > budget.bytes_left:
        budget.take_bytes(member.file_size)
    budget.check_time()
    if (whole := _read_whole(data, member)) is not None:
        budget.take_bytes(len(whole))
        return whole
    content = io.BytesIO()
    with (
        refusing("the archive is damaged here; pack it again", where=where),
        archive.open(member) as stream,
    ):
        while chunk := stream.read(_CHUNK):
            budget.check_time()
            budget.take_bytes(len(chunk))
            content.write(chunk)
    return content.getvalue()


def _read_whole(data: bytes, member: zipfile.ZipInfo) -> bytes | None:
    """The content of a member of an archive in `data`, where all that is said of it agrees.

    None otherwise: zipfile says what is wrong. It takes several times as long.
    """
    start = member.header_offset
    header = data[start : start + _LOCAL_HEADER] if start >= 0 else b""
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        return None
    named, extra = struct.unpack_from("<HH", header, 26)
    name = data[start + _LOCAL_HEADER : start + _LOCAL_HEADER + named]
    if not name.isascii() or name.decode() != member.orig_filename:
        return None
    begin = start + _LOCAL_HEADER + named + extra
    content = data[begin : begin + member.compress_size]
    if member.flag_bits & ~_PLAIN_FLAGS:
        return None
    if member.compress_type == zipfile.ZIP_DEFLATED:
        try:  # 0 would be no bound
            content = zlib_ng.decompressobj(-zlib.MAX_WBITS).decompress(
                content, max(1, member.file_size)
            )
        except zlib_ng.error:  # type: ignore[misc]  # its stub calls it an instance
            return None
    agrees = len(content) == member.file_size and zlib.crc32(content) == member.CRC
    return content if agrees else None


def tar_members(data: bytes, budget: Budget) -> list[tarfile.TarInfo]:
    """The regular members of an uncompressed tar that are not strays, in natural order of names.

    Their content, `data[member.offset_data:][:member.size]`, is checked to lie within `data`.
    """
    members: list[tarfile.TarInfo] = []
    damaged = "the archive is damaged or cut short; pack it again"
    if b"GNU.sparse." in data:
        raise MalformedSequence(_NO_PLAIN_FILE)  # tarfile would read a list of any length
    position = -1
    with (
        refusing(damaged),
        tarfile.open(fileobj=io.BytesIO(data), mode="r:", tarinfo=_bounded(budget)) as archive,
    ):
        while (member := archive.next()) is not None:
            budget.check_time()
            if archive.offset <= position:
                raise MalformedSequence(damaged)  # a negative size would lead round in circles
            position = archive.offset
            check_name(member.name)
            if member.isdir() or is_stray(member.name):
                continue
            if member.issym() or member.islnk():
                raise _link(member.name)
            if not member.isreg() or member.issparse():
                raise MalformedSequence(_NO_PLAIN_FILE, where=shown(member.name))
            if member.offset_data + member.size > len(data):
                raise MalformedSequence(damaged, where=shown(member.name))
            members.append(member)
            budget.check_frame_count(len(members))
        if any(data[archive.offset : archive.offset + tarfile.BLOCKSIZE]):
            raise MalformedSequence(damaged)  # tarfile takes a broken header for the end
    return sorted(members, key=lambda member: natural_key(member.name))


def _bounded(budget: Budget) -> type[tarfile.TarInfo]:
    """Members that are not too many, whose extended headers are short.

    Looked at one by one as they are read, because tarfile keeps each. One header may follow another
    without a file between, for a long one some versions of tarfile take time in the square of its
    length, during which no other thread runs, and what a sparse file's says may have any length.
    """
    most = most_members(budget)
    headers = members = global_bytes = 0

    class Member(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            nonlocal headers, members, global_bytes
            budget.check_time()
            member = super().frombuf(buf, encoding, errors)
            headers += 1
            members += member.type not in _EXTENDED
            if members > most or headers > most * _HEADERS_PER_MEMBER:
                raise SequenceTooLarge(_TOO_MANY)
            if member.type == tarfile.GNUTYPE_SPARSE:
                raise MalformedSequence(_NO_PLAIN_FILE)
            if member.type == tarfile.XGLTYPE:
                global_bytes += member.size
            if global_bytes > _LONGEST_GLOBAL or (
                member.type in _EXTENDED and member.size > _LONGEST_EXTENDED
            ):
                raise SequenceTooLarge(
                    "the archive says too much about a file; pack it without extended attributes"
                )
            return member

    return Member


def _link(name: str) -> MalformedSequence:
    return MalformedSequence(
        "the archive holds a link instead of a file; pack the files themselves", where=shown(name)
    )

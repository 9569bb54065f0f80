"""Members of archives, with names that are checked and sizes that are not believed."""

from __future__ import annotations

import io
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

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
_HEADERS_PER_FILE = 3  # two extended ones, and its own
_LONGEST_NAME = 1024
_NUMBER = re.compile(r"([0-9]+)")
_DIRECTORY_ENTRY = b"PK\x01\x02"
_DRIVE = re.compile(r"[A-Za-z]:")
_TOO_MANY = "the archive holds too many files; send a part of the walk"
_LONG_WINDED = (
    "the archive says too much about a file; pack it with short names and no extended attributes"
)


@contextmanager
def refusing(reason: str, *, where: str = "") -> Iterator[None]:
    """Turn whatever a library raises over hostile bytes into one MalformedSequence.

    Decoders raise nearly everything over broken input (struct.error, KeyError, RecursionError,
    their own), so there is no shorter list to catch. Nothing of their text is shown; the original
    stays as the cause. A lack of memory is no fault of the bytes and goes on as it is.
    """
    try:
        yield
    except (SequenceError, MemoryError):
        raise
    except Exception as error:
        raise MalformedSequence(reason, where=where) from error


def shown(name: str) -> str:
    """A member's name fit for a message: printable and short."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in name)
    return printable if len(printable) <= 120 else f"{printable[:117]}..."


def natural_key(name: str) -> str:
    """Order names as people number them: `2.png` before `10.png`.

    Numbers compare by length, then digits, so that no length of number has to be converted. Texts
    and numbers take turns, with a NUL between, which is in no name: one string for a name takes a
    hundredth of the memory that a tuple of its pieces does.
    """
    pieces = _NUMBER.split(name.casefold())
    numbers = (number.lstrip("0") for number in pieces[1::2])
    pieces[1::2] = (chr(1 + len(number)) + number for number in numbers)
    return "\0".join(pieces)


def is_stray(name: str) -> bool:
    """Whether a member is what file managers leave: `__MACOSX/`, `.DS_Store`, `Thumbs.db`."""
    parts = name.split("/")
    return parts[-1].startswith(".") or parts[-1].casefold() in _STRAY_NAMES or "__MACOSX" in parts


def check_name(name: str) -> None:
    """Refuse a name that points outside; nothing is ever written, but it is no honest file."""
    path = name.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path) or ".." in path.split("/"):
        raise MalformedSequence(
            "the archive holds a name that points outside it; pack it again with plain names",
            where=shown(name),
        )


def check_directory(data: bytes, *, most: int) -> None:
    """Refuse a zip whose list of files is too long, or too long-winded, before zipfile reads it.

    Every entry that zipfile keeps begins with these four bytes; in what is compressed they hardly
    ever come together.
    """
    if data.count(_DIRECTORY_ENTRY) > most:
        raise SequenceTooLarge(_TOO_MANY)
    position = data.find(_DIRECTORY_ENTRY)
    while position >= 0:
        lengths = data[position + 28 : position + 34].ljust(6, b"\0")
        if max(struct.unpack("<3H", lengths)) > _LONGEST_NAME:  # name, extra field and comment
            raise SequenceTooLarge(_LONG_WINDED)
        position = data.find(_DIRECTORY_ENTRY, position + 4)


def zip_members(archive: zipfile.ZipFile, budget: Budget) -> list[zipfile.ZipInfo]:
    """The regular members that are not strays, in natural order of names, none of them read yet."""
    members = []
    for member in archive.infolist():
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
        budget.check_time()
    return sorted(members, key=lambda member: natural_key(member.filename))


def read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget) -> bytes:
    """Read one member, a chunk at a time, whatever size the archive claims for it."""
    where = shown(member.filename)
    if member.file_size > budget.bytes_left:
        budget.take_bytes(member.file_size)
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


def tar_members(data: bytes, budget: Budget, *, most: int) -> list[tarfile.TarInfo]:
    """The regular members of an uncompressed tar that are not strays, in natural order of names.

    Their content, `data[member.offset_data:][:member.size]`, is checked to lie within `data`.
    """
    members: list[tarfile.TarInfo] = []
    damaged = "the archive is damaged or cut short; pack it again"
    position = -1
    with (
        refusing(damaged),
        tarfile.open(
            fileobj=io.BytesIO(data), mode="r:", tarinfo=_bounded(budget, most)
        ) as archive,
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
                raise MalformedSequence(
                    "the archive holds something that is no plain file; pack images only",
                    where=shown(member.name),
                )
            if member.offset_data + member.size > len(data):
                raise MalformedSequence(damaged, where=shown(member.name))
            members.append(member)
            if len(members) > most:
                raise SequenceTooLarge(_TOO_MANY)
        if any(data[archive.offset : archive.offset + tarfile.BLOCKSIZE]):
            raise MalformedSequence(damaged)  # tarfile takes a broken header for the end
    return sorted(members, key=lambda member: natural_key(member.name))


def _bounded(budget: Budget, most: int) -> type[tarfile.TarInfo]:
    """Members of about `most` files at most, with headers that are short.

    tarfile keeps what every header says, one may follow another without a file between, and for a
    long one some versions take time in the square of its length.
    """
    headers = 0

    class Member(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            nonlocal headers
            headers += 1
            if headers > _HEADERS_PER_FILE * most:
                raise SequenceTooLarge(_TOO_MANY)
            budget.check_time()
            member = super().frombuf(buf, encoding, errors)
            if member.type in _EXTENDED and member.size > _LONGEST_EXTENDED:
                raise SequenceTooLarge(_LONG_WINDED)
            return member

    return Member


def _link(name: str) -> MalformedSequence:
    return MalformedSequence(
        "the archive holds a link instead of a file; pack the files themselves", where=shown(name)
    )

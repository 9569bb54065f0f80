"""Sealed objects open as they were written, and nothing else opens."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from service.foundation.errors import Unavailable
from service.storage.encryption import EncryptionKey, Tampered
from service.storage.objects import PIECE, AlreadyStored, FolderObjects, NotStored
from service.storage.sealed_objects import SealedObjects

KEY, OTHER = EncryptionKey(b"a" * 32), EncryptionKey(b"b" * 32)
HEAD = 32  # bytes before the first piece


@pytest.fixture
def plain(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path)


@pytest.fixture
def sealed(plain: FolderObjects) -> SealedObjects:
    return SealedObjects(plain, [KEY])


def whole(objects: FolderObjects | SealedObjects, key: str) -> bytes:
    return b"".join(objects.read(key))


@pytest.mark.parametrize(
    "sizes", [[], [0], [1], [15, 16, 17], [PIECE], [PIECE + 1], [PIECE, PIECE], [3 * PIECE + 5, 9]]
)
def test_an_object_is_read_as_it_was_written(
    plain: FolderObjects, sealed: SealedObjects, sizes: list[int]
) -> None:
    pieces = [os.urandom(size) for size in sizes]
    sealed.write("a/b", pieces)
    assert whole(sealed, "a/b") == b"".join(pieces)
    stored = whole(plain, "a/b")
    assert not any(piece[:64] in stored for piece in pieces if len(piece) > 8)
    assert whole(SealedObjects(plain, [OTHER, KEY]), "a/b") == b"".join(pieces)


def test_small_objects_listing_and_deleting_are_as_without(
    plain: FolderObjects, sealed: SealedObjects
) -> None:
    sealed.write_new("a/b", b"first")
    with pytest.raises(AlreadyStored):
        sealed.write_new("a/b", b"second")
    assert whole(sealed, "a/b") == b"first"
    assert [one.key for one in sealed.list("a")] == ["a/b"]
    sealed.delete(["a/b"])
    with pytest.raises(NotStored):
        whole(sealed, "a/b")


@pytest.mark.parametrize("content", [b"", b"short", b"x" * (PIECE + 9)])
def test_what_was_stored_before_there_was_a_key_is_read(
    plain: FolderObjects, sealed: SealedObjects, content: bytes
) -> None:
    plain.write("a/b", [content])
    assert whole(sealed, "a/b") == content


def test_without_its_key_an_object_says_that_the_key_is_missing(
    plain: FolderObjects, sealed: SealedObjects
) -> None:
    sealed.write("a/b", [b"frames"])
    with pytest.raises(Unavailable, match="GAITID_ENCRYPTION_KEYS"):
        whole(SealedObjects(plain, [OTHER]), "a/b")


def test_what_was_changed_cut_moved_or_exchanged_does_not_open(
    plain: FolderObjects, sealed: SealedObjects
) -> None:
    sealed.write("a/b", [b"1" * PIECE, b"2" * PIECE, b"3"])
    stored = whole(plain, "a/b")
    (length,) = struct.unpack(">I", stored[HEAD : HEAD + 4])
    first, second = (
        stored[HEAD + at * (4 + length) : HEAD + (at + 1) * (4 + length)] for at in (0, 1)
    )
    rest = stored[HEAD + 2 * (4 + length) :]
    head = stored[:HEAD]
    wrong = {
        "a bit": stored[:-1] + bytes([stored[-1] ^ 1]),
        "cut in a piece": stored[:-3],
        "cut after a piece": head + first + second,
        "only a head": head,
        "exchanged": head + second + first + rest,
        "left out": head + first + rest,
        "said to be the last": head + first[:4] + b"\1" + first[5:],
        "something after it": stored + b"more",
        "no length": head + b"\0\0\0\0",
        "a length of gigabytes": head + b"\xff\xff\xff\xff" + first[4:],
    }
    for content in wrong.values():
        plain.write("a/b", [content])
        with pytest.raises(Tampered):
            whole(sealed, "a/b")
    plain.write("a/c", [stored])
    with pytest.raises(Tampered):
        whole(sealed, "a/c")

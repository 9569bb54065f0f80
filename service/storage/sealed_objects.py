"""Objects of a store that nobody can read without the deployment's encryption keys.

    MAGIC  name of the key (16)  [length (4)  piece, sealed]…

Each piece is bound to the object's key, to its place and to whether it is the last: none can be
moved, left out or cut off. The names of objects are not hidden. What was stored plain, before there
was a key, is read as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from service.foundation.errors import Unavailable
from service.storage.encryption import EncryptionKey, Tampered
from service.storage.objects import PIECE, Listed, Objects

_MAGIC: Final = b"GaitID sealed 1\n"
_NAME: Final = 16
_LENGTH: Final = struct.Struct(">I")
_MORE: Final = 28  # bytes that sealing adds to a piece


class SealedObjects:
    """See `Objects`; writes with the first of some keys, reads with any."""

    def __init__(self, objects: Objects, keys: Sequence[EncryptionKey]) -> None:
        """`keys` are the deployment's, one at least."""
        self._objects = objects
        self._keys = {key.key_id: key for key in keys}
        self._current = keys[0]

    def write(self, key: str, content: Iterable[bytes]) -> None:
        """Seal while it is written."""
        self._objects.write(key, self._sealed(key, content))

    def write_new(self, key: str, content: bytes) -> None:
        """Seal it first."""
        self._objects.write_new(key, b"".join(self._sealed(key, [content])))

    def read(self, key: str) -> Iterator[bytes]:
        """Open while it is read; raises `Tampered` too, and `Unavailable` without the key."""
        pieces = self._objects.read(key)
        source = _Source(pieces)
        beginning = source.take(len(_MAGIC))
        if beginning != _MAGIC:
            yield beginning + source.rest()
            yield from pieces
            return
        opened = self._key(source.take(_NAME))
        place, last = 0, False
        while not last:
            (length,) = _LENGTH.unpack(source.take_all(_LENGTH.size))
            if length > 1 + PIECE + _MORE:
                raise Tampered("a piece is larger than any that is written")
            said, sealed = source.take_all(1), source.take_all(length - 1)
            last = said == b"\1"
            yield opened.decrypt(sealed, _about(key, place, last=last))
            place += 1
        if source.take(1):
            raise Tampered("something follows the last piece")

    def list(self, prefix: str) -> Iterator[Listed]:
        """Names are as they are."""
        return self._objects.list(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete them."""
        self._objects.delete(keys)

    def _sealed(self, key: str, content: Iterable[bytes]) -> Iterator[bytes]:
        yield _MAGIC + self._current.key_id.encode()
        place, held = 0, b""
        for piece in content:
            for start in range(0, len(piece), PIECE):
                if held:
                    yield self._piece(key, place, held, last=False)
                    place += 1
                held = piece[start : start + PIECE]
        yield self._piece(key, place, held, last=True)

    def _piece(self, key: str, place: int, plain: bytes, *, last: bool) -> bytes:
        sealed = self._current.encrypt(plain, _about(key, place, last=last))
        return _LENGTH.pack(1 + len(sealed)) + (b"\1" if last else b"\0") + sealed

    def _key(self, name: bytes) -> EncryptionKey:
        key = self._keys.get(name.decode("ascii", "replace"))
        if key is None:
            raise Unavailable(
                "Files of a job in the store are encrypted with a key that this process was not "
                "given. Its operator must restart it with that key in GAITID_ENCRYPTION_KEYS.",
                slug="encryption-key-missing",
                retry_after=60.0,
            )
        return key


class _Source:
    """Pieces of any size, read in pieces of wanted sizes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = bytearray()

    def take(self, count: int) -> bytes:
        """So many bytes, or fewer at the end."""
        while len(self._held) < count:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._held += piece
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    def take_all(self, count: int) -> bytes:
        """So many bytes; raises `Tampered` at the end."""
        taken = self.take(count)
        if count < 1 or len(taken) < count:
            raise Tampered("an object was cut off")
        return taken

    def rest(self) -> bytes:
        """What was read of the pieces and not taken."""
        return bytes(self._held)


def _about(key: str, place: int, *, last: bool) -> bytes:
    return f"object {key} {place} {last}".encode()

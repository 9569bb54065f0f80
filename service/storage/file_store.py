"""Files that the hosts of a deployment share: `GAITID_STORE`, a folder or `s3://bucket/prefix`.

What is put is a file or a folder, whole or not at all: its files are objects under a name of their
own, and a manifest with their digests, written last, says that they are there. Whoever was killed
before leaves objects without a manifest, which a sweep removes. What is fetched is compared with
the manifest, piece by piece, and appears in its place in one renaming.

    KEY/manifest.json      names, sizes and SHA-256 of the files, and the part
    KEY/.PART/NAME         the files of one `put`
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from models.files.disk import sync
from service.foundation.errors import Unavailable
from service.foundation.settings import S3_SCHEME, Settings
from service.storage.database import in_pieces, new_id
from service.storage.encryption import EncryptionKey, Tampered
from service.storage.objects import (
    PIECE,
    AlreadyStored,
    FolderObjects,
    NotStored,
    Objects,
)
from service.storage.sealed_objects import SealedObjects

_SEGMENT: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}"
_NAME: Final = rf"^{_SEGMENT}(/{_SEGMENT})*$"  # no "..", no absolute path, no hidden file
_MANIFEST: Final = "manifest.json"
_MOST_MANIFEST_BYTES: Final = 1 << 20
_AT_ONCE: Final = 1000  # keys that are deleted in one request
_log = logging.getLogger(__name__)


class StoreDamaged(Unavailable):
    """The store holds other bytes than were put there, also when asked again."""

    slug = "store-damaged"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The store holds {key} not as it was put there. Its operator must put it again; the "
            "service's log says more.",
            retry_after=60.0,
        )


class StoreUnusable(Exception):
    """This installation cannot use what GAITID_STORE names; the text says why."""


class StoredFile(BaseModel):
    """One file of what was put."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=_NAME)]
    size: NonNegativeInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What was put under a key: a folder of files, or one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Annotated[str, Field(pattern=rf"^{_SEGMENT}$")]
    folder: bool
    files: tuple[StoredFile, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over names, sizes and digests of the files."""
        text = "\n".join(f"{one.sha256} {one.size} {one.name}" for one in self.files)
        return hashlib.sha256(text.encode()).hexdigest()


class _Wrong(Exception):
    """The bytes of an object are not those of the manifest."""


class FileStore:
    """Files and folders by key, over objects. Every method may raise `StoreUnavailable`.

    A key is names with `/` between, without hidden ones; others raise `ValueError`.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def put(self, key: str, source: Path, go_on: Callable[[], None] = lambda: None) -> Manifest:
        """Put a file or a folder, in the place of what the key has; others never see a part.

        `go_on` is called between pieces; what it raises ends the work, as an error of some kind.
        Raises `OSError` for a source that cannot be read, `ValueError` for names in it that are not
        stored.
        """
        before = self.find(key)
        part = new_id()
        folder = source.is_dir()
        files = tuple(
            self._upload(f"{key}/.{part}", name, path, go_on)
            for name, path in (_files(source) if folder else [("file", source)])
        )
        manifest = Manifest(part=part, folder=folder, files=files)
        self._objects.write(f"{key}/{_MANIFEST}", [manifest.model_dump_json().encode()])
        if before is not None:
            self._delete_below(f"{key}/.{before.part}")
        return manifest

    def holds(self, key: str, source: Path) -> bool:
        """Whether a key has the very files of a folder."""
        found = self.find(key)
        here = tuple(_described(name, path) for name, path in _files(source))
        return found is not None and found.folder and found.files == here

    def find(self, key: str) -> Manifest | None:
        """What the key has, or None; raises `StoreDamaged` for a manifest that is none."""
        _check(key)
        content = bytearray()
        try:
            for piece in self._objects.read(f"{key}/{_MANIFEST}"):
                content += piece
                if len(content) > _MOST_MANIFEST_BYTES:
                    raise StoreDamaged(key)
        except NotStored:
            return None
        except Tampered as error:
            _log.error("the manifest of %s in the store is not as it was written", key)
            raise StoreDamaged(key) from error
        try:
            return Manifest.model_validate_json(bytes(content))
        except ValidationError as error:
            _log.error("the manifest of %s in the store is none", key)
            raise StoreDamaged(key) from error

    def fetch(self, key: str, to: Path, go_on: Callable[[], None] = lambda: None) -> Manifest:
        """Fetch what the key has; `to` then is the file, or the folder, whole, as returned.

        `go_on` is called between pieces; what it raises ends the work.
        A folder that is there already stays. Raises `NotStored`, `OSError` where `to` cannot be
        written, and `StoreDamaged` for bytes that are wrong twice.
        """
        incoming = to.with_name(f".incoming-{new_id()}")
        to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            manifest = self._fetch(key, incoming, go_on)
            try:
                incoming.rename(to)
            except OSError:
                if not (incoming.is_dir() and to.is_dir()):  # else another was faster
                    raise
            sync(to.parent)
        finally:
            _remove(incoming)
        return manifest

    def read(self, key: str, name: str, most: int, *, again: bool = True) -> tuple[Manifest, bytes]:
        """What the key has, and the bytes of one of its files; nothing else is fetched.

        Raises `NotStored`, and `StoreDamaged` for bytes that are wrong twice (once unless `again`),
        or more than `most`.
        """
        manifest = self.find(key)
        if manifest is None:
            raise NotStored(key)
        one = next((one for one in manifest.files if one.name == name), None)
        if one is None or one.size > most:
            raise StoreDamaged(key)
        try:
            return manifest, b"".join(self._pieces(key, manifest, one))
        except (_Wrong, NotStored, Tampered) as error:  # as in `_fetch`
            _log.error("%s in the store is not as it was put there: %r", key, error)
            if not again:
                raise StoreDamaged(key) from error
            return self.read(key, name, most, again=False)

    def keys(self, prefix: str, before: datetime | None = None) -> Iterator[str]:
        """The keys below a prefix that have something, put before a moment, in no order."""
        _check(prefix)
        for listed in self._objects.list(prefix):
            key, _, name = listed.key.rpartition("/")
            known = name == _MANIFEST and re.fullmatch(_NAME, key)
            if known and (before is None or listed.written < before):
                yield key

    def beginnings(self, prefix: str, since: datetime | None = None) -> Iterator[str]:
        """The first names below a prefix, again and again; of what was written since a moment."""
        _check(prefix)
        for listed in self._objects.list(prefix):
            first = listed.key.removeprefix(f"{prefix}/").split("/", 1)[0]
            if re.fullmatch(_SEGMENT, first) and (since is None or listed.written >= since):
                yield first

    def delete(self, prefix: str) -> None:
        """Delete a key, and all below it, unfinished puts too."""
        _check(prefix)
        self._delete_below(prefix)

    def keep_first(self, key: str, content: bytes) -> bytes:
        """Store a few bytes if the key has none; returns those it has. Of many, one is first."""
        _check(key)
        with suppress(AlreadyStored):
            self._objects.write_new(key, content)
        return b"".join(self._objects.read(key))

    def sweep(self, prefix: str, before: datetime) -> None:
        """Delete what puts below a prefix that were killed, or overtaken, left before a moment."""
        _check(prefix)
        kept: dict[str, str | None] = {}
        left = []
        for listed in self._objects.list(prefix):
            key, hidden, rest = listed.key.partition("/.")
            if not hidden or listed.written >= before or not re.fullmatch(_NAME, key):
                continue
            try:
                if key not in kept:
                    found = self.find(key)
                    kept[key] = None if found is None else found.part
            except StoreDamaged:  # nobody knows what of it is kept
                continue
            if rest.split("/", 1)[0] != kept[key]:
                left.append(listed.key)
        self._delete_all(left)

    def _upload(self, under: str, name: str, path: Path, go_on: Callable[[], None]) -> StoredFile:
        hashed, size = hashlib.sha256(), 0

        def pieces() -> Iterator[bytes]:
            nonlocal size
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    go_on()
                    hashed.update(piece)
                    size += len(piece)
                    yield piece

        _check(name)
        self._objects.write(f"{under}/{name}", pieces())
        return StoredFile(name=name, size=size, sha256=hashed.hexdigest())

    def _fetch(
        self, key: str, to: Path, go_on: Callable[[], None], *, again: bool = True
    ) -> Manifest:
        manifest = self.find(key)
        if manifest is None:
            raise NotStored(key)
        try:
            self._download(key, manifest, to, go_on)
        # NotStored: it was put anew meanwhile, and what the old manifest names is deleted.
        except (_Wrong, NotStored, Tampered) as error:
            _log.error("%s in the store is not as it was put there: %r", key, error)
            if not again:
                raise StoreDamaged(key) from error
            _remove(to)
            return self._fetch(key, to, go_on, again=False)
        return manifest

    def _download(self, key: str, manifest: Manifest, to: Path, go_on: Callable[[], None]) -> None:
        if manifest.folder:
            to.mkdir(mode=0o700)
        for one in manifest.files:
            path = to / one.name if manifest.folder else to
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as file:
                for piece in self._pieces(key, manifest, one):
                    go_on()
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())

    def _pieces(self, key: str, manifest: Manifest, one: StoredFile) -> Iterator[bytes]:
        """The bytes of a file; raises `_Wrong` at their end, or before there are too many."""
        hashed, size = hashlib.sha256(), 0
        for piece in self._objects.read(f"{key}/.{manifest.part}/{one.name}"):
            hashed.update(piece)
            size += len(piece)
            if size > one.size:
                break
            yield piece
        if size != one.size or hashed.hexdigest() != one.sha256:
            raise _Wrong(one.name)

    def _delete_below(self, prefix: str) -> None:
        keys = [listed.key for listed in self._objects.list(prefix)]
        # Manifests first: what is deleted in part must not look whole.
        keys.sort(key=lambda key: not key.endswith(f"/{_MANIFEST}"))
        self._delete_all(keys)

    def _delete_all(self, keys: list[str]) -> None:
        for some in in_pieces(keys, _AT_ONCE):
            self._objects.delete(some)


def open_store(settings: Settings, keys: Sequence[EncryptionKey] = ()) -> FileStore | None:
    """The deployment's store; None where every file stays in the data folder.

    With `keys` what is put is encrypted with the first of them. Raises `StoreUnusable`.
    """
    if settings.store is None:
        return None
    objects = _objects(settings.store)
    return FileStore(SealedObjects(objects, keys) if keys else objects)


@cache  # with its connections and certificates
def _objects(setting: str) -> Objects:
    if not setting.startswith(S3_SCHEME):
        return FolderObjects(Path(setting))
    try:
        from service.storage.s3 import S3Objects
    except ImportError as error:
        raise StoreUnusable(
            "GAITID_STORE=s3://… needs the extra: pip install gaitid[s3]"
        ) from error
    bucket, _, prefix = setting.removeprefix(S3_SCHEME).partition("/")
    return S3Objects(bucket, prefix.strip("/"))


def _check(name: str) -> None:
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"{name!r} is no name that is stored")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder by their names; raises `ValueError` for links and hidden names."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{name} in {folder.name} is neither a file nor a folder")
        _check(name)
        if path.is_file():
            yield name, path


def _described(name: str, path: Path) -> StoredFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(name=name, size=path.stat().st_size, sha256=digest)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

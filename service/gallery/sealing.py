"""What is kept of walks, plain or encrypted.

That is silhouettes, embeddings, and what is made of the embeddings of a gallery. All reads and
writes of them use the `Sealing` of the engine. A row's `key_id` names what it was sealed with: a
key of the deployment's, or the store that has a key for each walk (`service.storage.walk_keys`),
which seals silhouettes and embeddings where there is one. It is None if the row is plain. All kinds
may exist at once while a gallery is being encrypted or its keys are changed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Literal

import numpy as np
from sqlalchemy import Engine, Row, event, make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.foundation.errors import Unavailable
from service.gallery.records import Embedding, Silhouettes
from service.gallery.tables import EmbeddingRow, EncryptionKeyRow
from service.storage.database import now, take_turns, writing
from service.storage.encryption import Cipher, EncryptionKey, KeyTrouble, Tampered
from service.storage.walk_keys import STORE, KeyEnded, KeyLost, WalkKeys, open_walk_keys

KeptEmbedding = EmbeddingRow | Row[*tuple[Any, ...]]
"""An embedding's row, or its columns."""

SIDE = 64
KEYS_IN_USE: Final = "encryption keys"
"""At which writers of galleries, and who retires a key, take turns."""
_OPTION = "sealing"  # of an engine
_RESTART_S = 60.0  # what an operator needs at least: more than clients wait by themselves


SceneData = Literal["transform", "sums"]
"""What is made of the embeddings of a gallery: see `service.gallery.scenes`."""


class Damaged(Unavailable):
    """What is stored of a sequence is not what was written there."""


class DamagedEmbedding(Damaged):
    """A stored embedding is not what was written there; its gallery cannot be searched."""

    slug = "embedding-damaged"

    def __init__(self) -> None:
        """Say what mends it."""
        super().__init__(
            "A stored embedding of this gallery was damaged or changed. POST /jobs/reindex makes "
            "it anew from its silhouettes.",
            retry_after=_RESTART_S,
        )


class DamagedSilhouettes(Damaged):
    """Stored silhouettes are not what was written there: no model can embed them any more."""

    slug = "silhouettes-damaged"

    def __init__(self, sequence_id: str) -> None:
        """Say whose they are, because nothing can make them anew."""
        super().__init__(
            f"The stored silhouettes of the sequence {sequence_id} were damaged or changed. "
            "Restore a backup, or erase the sequence and enrol the walk again.",
            retry_after=_RESTART_S,
        )


class LostWalkKey(Damaged):
    """A walk cannot be read, because the store of walk keys has no key of it."""

    slug = "walk-key-lost"

    def __init__(self, sequence_id: str) -> None:
        """Say whose it is, and what mends it."""
        super().__init__(
            f"The store of walk keys has no key of the sequence {sequence_id}. Its operator must "
            "put back the newest copy of that store, or run `gaitid encryption reconcile`, which "
            "erases walks that cannot be read any more.",
            retry_after=_RESTART_S,
        )


class ErasedWalk(Unavailable):
    """A walk was erased between two looks at it, or was restored with an older database."""

    slug = "walk-erased"

    def __init__(self) -> None:
        """Say that it is a matter of a moment."""
        super().__init__("A walk was erased while it was read. Try again.", retry_after=1.0)


class DamagedScene(Damaged):
    """What is stored of a gallery's scene is not what was written there."""

    slug = "scene-damaged"

    def __init__(self, what: SceneData) -> None:
        """Say what mends it."""
        super().__init__(
            "The scene transform of this gallery was damaged or changed. POST /jobs/adapt makes "
            "it anew."
            if what == "transform"
            else "The sums of the walks of whoever passed were damaged or changed, and nothing "
            "can make them anew. DELETE /galleries/{gallery}/cohort drops them.",
            retry_after=_RESTART_S,
        )


class Sealing:
    """Seals with the first of its keys and opens with any; without keys it keeps things plain.

    With `walk_keys` it seals each walk with a key of the walk's own.
    """

    def __init__(
        self, keys: Sequence[EncryptionKey] = (), walk_keys: WalkKeys | None = None
    ) -> None:
        self._keys = {key.key_id: key for key in keys}
        self._current = keys[0] if keys else None
        self.walk_keys = walk_keys

    @property
    def key_id(self) -> str | None:
        """What rows of a whole gallery that are sealed now carry as their `key_id`."""
        return None if self._current is None else self._current.key_id

    @property
    def walks_key_id(self) -> str | None:
        """What rows of one walk that are sealed now carry as their `key_id`."""
        return self.key_id if self.walk_keys is None else self.walk_keys.name

    def begin(self, walk_ids: Collection[str]) -> None:
        """Make the keys of walks that are sealed for the first time, together and durably."""
        if self.walk_keys is not None:
            self.walk_keys.make(walk_ids)

    def fetch(self, walk_ids: Iterable[str]) -> None:
        """Read the keys of walks that are opened next, together."""
        if self.walk_keys is not None:
            self.walk_keys.fetch(walk_ids)

    def forget(self, walk_ids: Iterable[str]) -> None:
        """Drop the keys of walks that were erased from memory."""
        if self.walk_keys is not None:
            self.walk_keys.forget(walk_ids)

    def require_current(self, session: Session) -> None:
        """Raise `Unavailable` unless this is still how the gallery is written.

        For the transaction that writes: a process that was not restarted since the gallery was
        encrypted, or since its key was replaced, must not add to it.
        """
        take_turns(session, KEYS_IN_USE, shared=True)
        known = set(session.scalars(select(EncryptionKeyRow.key_id)))
        mine = {self.key_id, self.walks_key_id} - {None}
        if not mine <= known or (known and not mine) or _stores(known) - mine:
            raise Unavailable(
                "This process has not got the encryption key that the gallery is written with. "
                "Its operator must restart it with the current GAITID_ENCRYPTION_KEYS and "
                "GAITID_WALK_KEYS_URL.",
                slug="encryption-key-missing",
                retry_after=_RESTART_S,
            )

    def seal_silhouettes(self, sequence_id: str, silhouettes: Silhouettes) -> bytes:
        """Silhouettes uint8 [s, 64, 64] for keeping, after `begin`.

        `ValueError` for any other shape.
        """
        return self._seal(packed(silhouettes), _about_silhouettes(sequence_id), sequence_id)

    def silhouettes(
        self, sequence_id: str, kept: bytes, key_id: str | None, *, hashed: str | None = None
    ) -> Silhouettes:
        """Undo `seal_silhouettes`: uint8 [s, 64, 64].

        `hashed` is the `content_hash` of the row, if it was read: plain silhouettes must have it.

        Raises `Unavailable` without the key, `ErasedWalk`, `LostWalkKey`, and `DamagedSilhouettes`
        for what was not sealed as this sequence's silhouettes, or is none.
        """
        try:
            about = _about_silhouettes(sequence_id)
            plain = zlib.decompress(self._open(kept, key_id, about, sequence_id))
            silhouettes = np.frombuffer(plain, np.uint8).reshape(-1, SIDE, SIDE)
        except (Tampered, zlib.error, ValueError) as error:  # ValueError: no whole frames
            raise DamagedSilhouettes(sequence_id) from error
        if key_id is None and hashed not in (None, content_hash(silhouettes)):
            raise DamagedSilhouettes(sequence_id)  # another sequence's
        return silhouettes

    def seal_embedding(self, sequence_id: str, digest: str, embedding: Embedding) -> EmbeddingRow:
        """The row for what a checkpoint made of a sequence: float32 [p, c]."""
        parts, channels = embedding.shape
        vector = np.ascontiguousarray(embedding, "<f4").tobytes()
        row = EmbeddingRow(
            sequence_id=sequence_id,
            digest=digest,
            parts=parts,
            channels=channels,
            vector=self._seal(vector, _about_embedding(sequence_id, digest), sequence_id),
            key_id=self.walks_key_id,
        )
        row.checksum = None if self._current else _checksum(row)  # encryption has its own
        return row

    def seal_embeddings(
        self, digest: str, made: Iterable[tuple[str, Embedding]]
    ) -> dict[str, EmbeddingRow]:
        """The rows of several sequences by id, without those that were erased meanwhile."""
        rows = {}
        for sequence_id, embedding in made:
            with suppress(ErasedWalk):
                rows[sequence_id] = self.seal_embedding(sequence_id, digest, embedding)
        return rows

    def embedding(self, row: KeptEmbedding) -> Embedding:
        """Undo `seal_embedding`: float32 [p, c].

        A plain one without a checksum, from before there was one, is taken as it is. Raises
        `Unavailable` without the key, `ErasedWalk`, `LostWalkKey`, and `DamagedEmbedding` for what
        was not sealed as this checkpoint's embedding of this sequence, or is none.
        """
        try:
            embedding = np.frombuffer(self._open_embedding(row), "<f4").reshape(row.parts, -1)
        except ValueError as error:  # its bytes do not fill its shape
            raise DamagedEmbedding from error
        if not np.isfinite(embedding).all():
            raise DamagedEmbedding
        return embedding.astype(np.float32, copy=False)

    def content_hash(self, silhouettes: Silhouettes) -> str:
        """A hash of the normalised frames, whatever file they came in.

        With encryption it is keyed: a plain hash would tell who has a walk that it is enrolled.
        """
        return content_hash(silhouettes, self.walk_keys or self._current)

    def content_hashes(self, silhouettes: Silhouettes) -> tuple[str, ...]:
        """Every hash that this walk may be kept under, the present one first.

        The others are by any of the keys and, last, the plain one of what was enrolled before there
        was a key.
        """
        own = () if self.walk_keys is None else (self.walk_keys,)
        keys = (*own, *self._keys.values(), None)
        return tuple(content_hash(silhouettes, key) for key in keys)

    def reseal_silhouettes(self, sequence_id: str, kept: bytes, key_id: str | None) -> bytes:
        """Silhouettes sealed with any key, sealed with the first; raises as `silhouettes` does."""
        about = _about_silhouettes(sequence_id)
        try:
            return self._seal(self._open(kept, key_id, about, sequence_id), about, sequence_id)
        except Tampered as error:
            raise DamagedSilhouettes(sequence_id) from error

    def reseal_embedding(self, row: KeptEmbedding) -> bytes:
        """The vector of a row, sealed with the first key; raises as `embedding` does."""
        vector = self._open_embedding(row)
        about = _about_embedding(row.sequence_id, row.digest)
        return self._seal(vector, about, row.sequence_id)

    def seal_scene(self, what: SceneData, gallery_id: str, digest: str, data: bytes) -> bytes:
        """A scene transform or sums, as they write themselves, for keeping."""
        return self._seal(data, _about_scene(what, gallery_id, digest))

    def scene(
        self, what: SceneData, gallery_id: str, digest: str, kept: bytes, key_id: str | None
    ) -> bytes:
        """Undo `seal_scene`; raises `Unavailable` without the key, and `DamagedScene`.

        Plain bytes are taken as they are: their archive has checksums of its own.
        """
        try:
            return self._open(kept, key_id, _about_scene(what, gallery_id, digest))
        except Tampered as error:
            raise DamagedScene(what) from error

    def _open_embedding(self, row: KeptEmbedding) -> bytes:
        """The bytes that were sealed; raises `DamagedEmbedding` for others."""
        if row.key_id is None and row.checksum not in (None, _checksum(row)):
            raise DamagedEmbedding
        try:
            about = _about_embedding(row.sequence_id, row.digest)
            return self._open(row.vector, row.key_id, about, row.sequence_id)
        except Tampered as error:
            raise DamagedEmbedding from error

    def _seal(self, plain: bytes, about: bytes, walk_id: str | None = None) -> bytes:
        if walk_id is not None and self.walk_keys is not None:
            return _cipher(self.walk_keys, walk_id).encrypt(plain, about)
        return plain if self._current is None else self._current.encrypt(plain, about)

    def _open(
        self, kept: bytes, key_id: str | None, about: bytes, walk_id: str | None = None
    ) -> bytes:
        if key_id is None:
            return kept
        if walk_id is not None and self.walk_keys is not None and key_id == self.walk_keys.name:
            return _cipher(self.walk_keys, walk_id).decrypt(kept, about)
        key = self._keys.get(key_id)
        if key is None:
            raise _missing(key_id)
        return key.decrypt(kept, about)


def _cipher(walk_keys: WalkKeys, walk_id: str) -> Cipher:
    try:
        return walk_keys.cipher(walk_id)
    except KeyEnded as error:
        raise ErasedWalk from error
    except KeyLost as error:
        raise LostWalkKey(walk_id) from error
    except KeyTrouble as error:
        raise _missing(str(error)) from error


def _missing(key_id: str) -> Unavailable:
    where = "GAITID_WALK_KEYS_URL" if key_id.startswith(STORE) else "GAITID_ENCRYPTION_KEYS"
    return Unavailable(
        f"A walk is encrypted with the key {key_id}, which this process was not given. Its "
        f"operator must restart it with that key in {where}.",
        slug="encryption-key-missing",
        retry_after=_RESTART_S,
    )


def packed(silhouettes: Silhouettes) -> bytes:
    """Silhouettes uint8 [s, 64, 64] as plain rows keep them; `ValueError` for any other shape."""
    if silhouettes.dtype != np.uint8 or silhouettes.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"silhouettes must be uint8 [s, {SIDE}, {SIDE}]")
    return zlib.compress(np.ascontiguousarray(silhouettes).tobytes(), 6)


_PLAIN = Sealing()


def sealing_of(engine: Engine) -> Sealing:
    """How this engine's galleries are kept: plain, unless `unlock` gave it keys."""
    sealing: Sealing = engine.get_execution_options().get(_OPTION, _PLAIN)
    return sealing


def unlock(engine: Engine, keys: Sequence[EncryptionKey], walk_keys_url: str | None = None) -> None:
    """Give the engine its keys, and note what it seals with from now on.

    `walk_keys_url` is of the store of walk keys, which is made for a database that names none.

    Raises `KeyTrouble` when the database is written with a key or a store that is not among them.
    """
    with Session(engine) as session:
        in_use = set(session.scalars(select(EncryptionKeyRow.key_id)))
    stores = _stores(in_use)
    missing = sorted(in_use - stores - {key.key_id for key in keys})
    if missing:
        named = ", ".join(missing)
        what = f"{'the key' if len(missing) == 1 else 'the keys'} {named}"
        have = ", ".join(key.key_id for key in keys)
        raise KeyTrouble(
            f"the galleries are encrypted with {what}, "
            + (f"and GAITID_ENCRYPTION_KEYS lists {have}" if have else "and there is no key here")
            + f"; add {what} to GAITID_ENCRYPTION_KEYS"
        )
    if walk_keys_url is None and stores:
        raise KeyTrouble(
            f"the galleries' walks are sealed with keys of the store {', '.join(stores)}: say "
            "where it is in GAITID_WALK_KEYS_URL"
        )
    if walk_keys_url is not None and not keys:
        raise KeyTrouble("GAITID_WALK_KEYS_URL needs a key in GAITID_ENCRYPTION_KEYS")
    if keys and keys[0].key_id not in in_use:
        _note(engine, keys[0])
    walk_keys = None if walk_keys_url is None else _open_walk_keys(engine, keys, walk_keys_url)
    if walk_keys is not None:
        event.listen(engine, "engine_disposed", lambda _engine: walk_keys.close())
    engine.update_execution_options(**{_OPTION: Sealing(keys, walk_keys)})


def _open_walk_keys(engine: Engine, keys: Sequence[EncryptionKey], url: str) -> WalkKeys:
    """The store that the database names; the first time it is made, and named."""
    if make_url(url).set(drivername="any") == engine.url.set(drivername="any"):
        raise KeyTrouble(
            "GAITID_WALK_KEYS_URL is the galleries' own database, whose copies would have the keys"
        )
    names = select(EncryptionKeyRow.key_id).where(EncryptionKeyRow.key_id.startswith(STORE))
    with Session(engine) as session:
        named = session.scalar(names)
    if named is not None:
        return open_walk_keys(url, keys, named)
    with Session(writing(engine)) as session, session.begin():
        take_turns(session, KEYS_IN_USE)  # another process may be making it
        named = session.scalar(names)
        walk_keys = open_walk_keys(url, keys, named)
        if named is None:
            session.add(EncryptionKeyRow(key_id=walk_keys.name, created_at=now()))
    return walk_keys


def _stores(key_ids: Iterable[str | None]) -> set[str]:
    return {key_id for key_id in key_ids if key_id is not None and key_id.startswith(STORE)}


def _note(engine: Engine, key: EncryptionKey) -> None:
    try:
        with Session(writing(engine)) as session, session.begin():
            if session.get(EncryptionKeyRow, key.key_id) is None:
                session.add(EncryptionKeyRow(key_id=key.key_id, created_at=now()))
    except IntegrityError:  # PostgreSQL: another process was a moment faster
        with Session(engine) as session:
            session.get_one(EncryptionKeyRow, key.key_id)


def content_hash(silhouettes: Silhouettes, key: EncryptionKey | WalkKeys | None = None) -> str:
    """SHA-256 of the normalised frames, keyed if there is a key."""
    content = np.ascontiguousarray(silhouettes).tobytes()
    return hashlib.sha256(content).hexdigest() if key is None else key.keyed_hash(content)


def _about_silhouettes(sequence_id: str) -> bytes:
    return f"silhouettes {sequence_id}".encode()


def _about_embedding(sequence_id: str, digest: str) -> bytes:
    return f"embedding {sequence_id} {digest}".encode()


def _about_scene(what: SceneData, gallery_id: str, digest: str) -> bytes:
    return f"scene {what} {gallery_id} {digest}".encode()


def _checksum(row: KeptEmbedding) -> int:
    """CRC-32 of an embedding and whose it is: of a damaged disk, not against an attacker."""
    whose = f"{row.sequence_id} {row.digest} {row.parts}"
    return zlib.crc32(row.vector, zlib.crc32(whose.encode()))

"""A key of its own for every walk, in a small database apart from the one that has the walks.

Whatever is sealed of a walk is sealed with its key, and the key is kept here, sealed with the
deployment's key. To end a key is to erase the walk wherever copies of it are: in backups of the
galleries' database, in its replicas, in its write-ahead log. So this database must have no share in
those, and copies of it are to be few and short-lived. Once every key was sealed with another key of
the deployment's (`rewrap`) and the former is destroyed, older copies of it open nothing.

A key is made, and on the disk, before the transaction that adds its walk. It is `made_at` until it
is known that the walk was added (`settle`). Of a key that ended the id is left: whoever finds a
walk of that id, in a database that was restored, knows that it was erased and not lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Engine,
    LargeBinary,
    Select,
    String,
    bindparam,
    delete,
    insert,
    inspect,
    make_url,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.storage.database import (
    UtcDateTime,
    in_pieces,
    now,
    open_database,
    take_turns,
    writing,
)
from service.storage.encryption import Cipher, EncryptionKey, KeyTrouble, Tampered
from service.storage.vacuum import clear_traces, mark_for_vacuum, vacuum

STORE: Final = "walks-"
"""Begins the names of stores of walk keys; a deployment's key has a name of hexadecimal digits."""

_SECRET_BYTES = 32
_NAME_LENGTH = 16
_CONNECTIONS = 10
_AT_ONCE = 1000  # rows of one statement
_AHEAD = 1000  # keys that are read beside one that is missing: walks are mostly read in their order
_MOST = 1_000_000  # keys in memory, of some 250 bytes each
_ROOT = 1
_TURN = "walk keys"


class KeyEnded(Exception):
    """The walk was erased."""


class KeyLost(Exception):
    """There never was a key of that walk here, or it is damaged."""


class WalkKeyTable(DeclarativeBase):
    """Base of the tables of this database."""

    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012 - SQLAlchemy reads it by name


class WalkKeyRow(WalkKeyTable):
    """The key of one walk, sealed with the deployment's key `key_id`; both null: it ended."""

    __tablename__ = "walk_key"

    walk_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    wrapped: Mapped[bytes | None] = mapped_column(LargeBinary)
    key_id: Mapped[str | None] = mapped_column(String(_NAME_LENGTH), index=True)
    made_at: Mapped[datetime | None] = mapped_column(index=True)


class RootRow(WalkKeyTable):
    """The one secret of the store itself, from which its name and its hashes are derived."""

    __tablename__ = "walk_key_root"

    id: Mapped[int] = mapped_column(primary_key=True)
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[str] = mapped_column(String(_NAME_LENGTH))


class WalkKeys:
    """The keys of walks, read when they are needed and kept in memory. Thread-safe."""

    def __init__(self, engine: Engine, keys: Sequence[EncryptionKey], root: EncryptionKey) -> None:
        """`keys` are the deployment's: the first seals keys of walks, all open them."""
        self._engine = engine
        self._keys = {key.key_id: key for key in keys}
        self._current = keys[0]
        self._root = root
        self._secrets: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """What rows carry as their `key_id` that are sealed with keys of this store."""
        return _name(self._root)

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    def keyed_hash(self, content: bytes) -> str:
        """As `EncryptionKey.keyed_hash`; it stays the same when the deployment's key changes."""
        return self._root.keyed_hash(content)

    def make(self, walk_ids: Collection[str]) -> None:
        """Make keys for these walks, but for those that have, or had, one; they are on the disk."""
        at = now()
        rows = [
            {
                "walk_id": walk_id,
                "wrapped": _wrapped(self._current, walk_id, os.urandom(_SECRET_BYTES)),
                "key_id": self._current.key_id,
                "made_at": at,
            }
            for walk_id in walk_ids
        ]
        with writing(self._engine).begin() as connection:
            for some in in_pieces(rows):
                connection.execute(_insert_missing(self._engine), some)
        self.fetch(walk_ids)

    def fetch(self, walk_ids: Iterable[str]) -> None:
        """Read the keys of these walks, where there is one, in as few statements as possible."""
        for some in in_pieces([one for one in walk_ids if one not in self._secrets]):
            self._read(_KEPT.where(WalkKeyRow.walk_id.in_(some)))

    def cipher(self, walk_id: str) -> Cipher:
        """What seals and opens a walk.

        Raises `KeyEnded`, `KeyLost`, and `KeyTrouble` where it is sealed with a key of the
        deployment's that is not here.
        """
        secret = self._secrets.get(walk_id)
        if secret is None:
            ahead = _KEPT.where(WalkKeyRow.walk_id >= walk_id).order_by(WalkKeyRow.walk_id)
            secret = self._read(ahead.limit(_AHEAD)).get(walk_id)
        if secret is None:
            raise self._without(walk_id)
        return Cipher(secret)

    def known(self, walk_ids: Iterable[str]) -> dict[str, bool]:
        """Of these walks, those that have a key, or had one that ended (False)."""
        found: dict[str, bool] = {}
        for some in in_pieces(walk_ids):
            query = _STATES.where(WalkKeyRow.walk_id.in_(some))
            with self._engine.connect() as connection:
                found |= {row.walk_id: row.key_id is not None for row in connection.execute(query)}
        return found

    def every(self, *, ended: bool) -> Iterator[list[str]]:
        """The ids of all walks whose keys ended, or did not, in pieces."""
        which = WalkKeyRow.key_id.is_(None) if ended else WalkKeyRow.key_id.is_not(None)
        query = _STATES.where(which).order_by(WalkKeyRow.walk_id).limit(_AT_ONCE)
        after = ""
        while True:
            with self._engine.connect() as connection:
                ids = list(connection.scalars(query.where(WalkKeyRow.walk_id > after)))
            if not ids:
                return
            yield ids
            after = ids[-1]

    def end(self, walk_ids: Collection[str]) -> bool:
        """End the keys of these walks; returns whether nothing of them is left in the files."""
        with writing(self._engine).begin() as connection:
            for some in in_pieces(walk_ids):
                connection.execute(
                    update(WalkKeyRow)
                    .where(WalkKeyRow.walk_id.in_(some))
                    .values(wrapped=None, key_id=None, made_at=None)
                )
            mark_for_vacuum(connection)
        self.forget(walk_ids)
        return clear_traces(self._engine, WalkKeyTable.metadata)

    def forget(self, walk_ids: Iterable[str]) -> None:
        """Drop the keys of these walks from memory."""
        with self._lock:
            for walk_id in walk_ids:
                self._secrets.pop(walk_id, None)

    def settle(self, before: datetime, added: Callable[[list[str]], set[str]]) -> None:
        """Look once at each key that was made before this moment: was its walk `added`?

        A key whose walk was not, because its process died, say, is removed.
        """
        query = _STATES.where(WalkKeyRow.made_at < before).limit(_AT_ONCE)
        while True:
            with self._engine.connect() as connection:
                ids = list(connection.scalars(query))
            if not ids:
                return
            found = added(ids)
            left = [walk_id for walk_id in ids if walk_id not in found]
            of_these = WalkKeyRow.walk_id.in_
            with writing(self._engine).begin() as connection:
                connection.execute(
                    delete(WalkKeyRow).where(of_these(left), WalkKeyRow.made_at.is_not(None))
                )
                connection.execute(
                    update(WalkKeyRow).where(of_these(list(found))).values(made_at=None)
                )
                if left:
                    mark_for_vacuum(connection)
            self.forget(left)

    def tidy(self) -> None:
        """Clear what ended keys have left in the files, where that was not possible before."""
        vacuum(self._engine, tables=WalkKeyTable.metadata)
        clear_traces(self._engine, WalkKeyTable.metadata)

    def rewrap(self) -> None:
        """Seal every key with the deployment's first key; walks do not change.

        Afterwards nothing of how they were sealed before is left in this database's files.
        """
        others = [key_id for key_id in self._keys if key_id != self._current.key_id]
        query = _KEPT.where(WalkKeyRow.key_id.in_(others)).limit(_AT_ONCE)
        anew = (
            update(WalkKeyRow)
            .where(WalkKeyRow.walk_id == bindparam("of"), WalkKeyRow.key_id == bindparam("by"))
            .values(wrapped=bindparam("wrapped"), key_id=self._current.key_id)
        )
        changed = False
        while True:
            with writing(self._engine).begin() as connection:
                rows = connection.execute(query).all()
                if not rows:
                    break
                connection.execute(anew, [self._rewrapped(row) for row in rows])
                mark_for_vacuum(connection)
                changed = True
        with writing(self._engine).begin() as connection:
            root = connection.execute(_THE_ROOT).one()
            if root.key_id != self._current.key_id:
                connection.execute(
                    update(RootRow).values(
                        wrapped=self._rewrapped(root)["wrapped"], key_id=self._current.key_id
                    )
                )
                changed = True
        if changed:
            self.tidy()

    def needs_others(self) -> bool:
        """Whether anything here is still sealed with another key than the deployment's first."""
        current = self._current.key_id
        with self._engine.connect() as connection:
            return any(
                connection.execute(select(column).where(column != current).limit(1)).first()
                for column in (WalkKeyRow.key_id, RootRow.key_id)
            )

    def _rewrapped(self, row: Any) -> dict[str, Any]:
        secret = _unwrapped(self._keys, row)
        wrapped = _wrapped(self._current, row.walk_id, secret)
        return {"of": row.walk_id, "by": row.key_id, "wrapped": wrapped}

    def _read(self, query: Select[*tuple[Any, ...]]) -> dict[str, bytes]:
        """The keys that a query finds and this process can open; they are kept in memory."""
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found = {}
        for row in rows:
            if row.key_id in self._keys:
                with suppress(Tampered):  # one damaged row is no reason to open none
                    found[row.walk_id] = _unwrapped(self._keys, row)
        with self._lock:
            self._secrets |= found
            for walk_id in list(self._secrets)[: max(0, len(self._secrets) - _MOST)]:
                del self._secrets[walk_id]
        return found

    def _without(self, walk_id: str) -> Exception:
        """Why a walk has no key here."""
        with self._engine.connect() as connection:
            row = connection.execute(_STATES.where(WalkKeyRow.walk_id == walk_id)).one_or_none()
        if row is not None and row.key_id is None:
            return KeyEnded(walk_id)
        if row is not None and row.key_id not in self._keys:
            return KeyTrouble(row.key_id)
        return KeyLost(walk_id)


_KEPT = select(WalkKeyRow.walk_id, WalkKeyRow.wrapped, WalkKeyRow.key_id)
_STATES = select(WalkKeyRow.walk_id, WalkKeyRow.key_id)
_THE_ROOT = select(RootRow.wrapped, RootRow.key_id, RootRow.id.label("walk_id"))


def open_walk_keys(url: str, keys: Sequence[EncryptionKey], named: str | None) -> WalkKeys:
    """Open a store of walk keys.

    Args:
        url: of its database.
        keys: the deployment's.
        named: the store that the galleries' database names; None: none yet, so it is made.

    Raises:
        KeyTrouble: it is not that store, or is gone; it belongs to another database; or it was
            made with a key that is not among these.
    """
    parsed = make_url(url)
    path = parsed.database if parsed.get_backend_name() == "sqlite" else None
    if path and named is None:
        Path(path).touch(mode=0o600)
    elif path and not Path(path).exists():
        raise _lost(str(named), "there is no such file")  # which opening it would make
    engine = open_database(url, connections=_CONNECTIONS)
    try:
        root = _root(engine, keys, named)
        return WalkKeys(engine, keys, root)
    except BaseException:
        engine.dispose()
        raise


def _root(engine: Engine, keys: Sequence[EncryptionKey], named: str | None) -> EncryptionKey:
    if named is None:
        _begin(engine, keys[0])
    elif not inspect(engine).has_table(RootRow.__tablename__):
        raise _lost(named, "it is empty")
    with engine.connect() as connection:
        row = connection.execute(_THE_ROOT).one_or_none()
        used = connection.execute(select(WalkKeyRow.walk_id).limit(1)).first() is not None
    if row is None:
        raise _lost(str(named), "it is empty")
    by = {key.key_id: key for key in keys}
    if row.key_id not in by:
        raise KeyTrouble(
            f"the keys of walks are sealed with the key {row.key_id}; add it to "
            "GAITID_ENCRYPTION_KEYS"
        )
    root = EncryptionKey(_unwrapped(by, row))
    if named is None and used:
        raise KeyTrouble(
            f"GAITID_WALK_KEYS_URL is the store {_name(root)} of another database's walks; name "
            "an empty one"
        )
    if named not in (None, _name(root)):
        raise _lost(str(named), f"it is the store {_name(root)}")
    return root


def _begin(engine: Engine, key: EncryptionKey) -> None:
    """Make the tables and the root, unless they are there."""
    with writing(engine).begin() as connection:
        take_turns(connection, _TURN)
        WalkKeyTable.metadata.create_all(connection)
        if connection.execute(_THE_ROOT).one_or_none() is None:
            wrapped = _wrapped(key, _ROOT, os.urandom(_SECRET_BYTES))
            connection.execute(
                insert(RootRow), {"id": _ROOT, "wrapped": wrapped, "key_id": key.key_id}
            )


def _lost(named: str, why: str) -> KeyTrouble:
    return KeyTrouble(
        f"the galleries' walks are sealed with keys of the store {named}, and GAITID_WALK_KEYS_URL "
        f"is not it: {why}; without it they cannot be read"
    )


def _name(root: EncryptionKey) -> str:
    return (STORE + root.key_id)[:_NAME_LENGTH]


def _wrapped(key: EncryptionKey, walk_id: str | int, secret: bytes) -> bytes:
    return key.encrypt(secret, f"key {walk_id}".encode())


def _unwrapped(keys: dict[str, EncryptionKey], row: Any) -> bytes:
    return keys[row.key_id].decrypt(row.wrapped, f"key {row.walk_id}".encode())


def _insert_missing(engine: Engine) -> Any:
    dialect: Any = sqlite if engine.dialect.name == "sqlite" else postgresql
    return dialect.insert(WalkKeyRow).on_conflict_do_nothing()

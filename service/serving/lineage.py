"""Which models learned from whom, so that a receipt can name the models that an erasure leaves.

The record must still answer after a person was erased, perhaps several times, and must not say by
itself who that was. So it holds, for each model, keyed hashes of the gallery's name and the
subject's id, unordered; the key lies beside the database, in the data folder (`receipts.key`), and
in the store of hosts that share one, so that all have the same. With
both one can try ids one by one; without the key nothing can be learned from the hashes.

A hash of another key, one that was lost, cannot be compared. Its model then counts as having
learned from everybody: a receipt may name too many models, never too few.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final, Self

from sqlalchemy import Index, String, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from service.gallery.tables import SequenceRow
from service.storage.database import Table, in_pieces
from service.storage.file_store import FileStore
from service.storage.objects import StoreUnavailable

_KEY_FILE: Final = "receipts.key"
_KEY_BYTES: Final = 32
_IN_STORE: Final = "keys/receipts"
_log = logging.getLogger(__name__)


class TrainedSubjectRow(Table):
    """A subject from whom a model learned."""

    __tablename__ = "trained_subject"

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    subject_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(16))

    __table_args__ = (
        Index("ix_trained_subject_hash", "subject_hash"),
        Index("ix_trained_subject_key", "key_id", "model"),
    )


class BrokenKey(Exception):
    """The key's file does not hold a key."""


class TrainingRecord:
    """The record, under one deployment's key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._key_id = hashlib.sha256(b"key id\0" + key).hexdigest()[:16]

    @classmethod
    def of(cls, data_dir: Path, store: FileStore | None = None) -> Self:
        """The deployment's, with a new key if it has none; raises `BrokenKey`.

        The first host with a store gives it its key. One that is away raises `StoreUnavailable`
        only where the data folder has no key yet.
        """
        path = data_dir / _KEY_FILE
        if store is not None:
            _share_key(path, store)
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            _make_key(path, secrets.token_bytes(_KEY_BYTES))
            key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise BrokenKey(
                f"{_KEY_FILE} in the data folder does not hold a key. Restore it from a backup; "
                "without it, remove it, and receipts will name every model trained so far."
            )
        return cls(key)

    def add(
        self,
        session: Session,
        model: str,
        gallery: str | None,
        subject_ids: Iterable[str],
        ancestors: Collection[str],
    ) -> None:
        """Record a new model's subjects, and those that the models it was made from learned from.

        `ancestors` are its teachers and what it started from: what they know it may know.
        """
        session.execute(delete(TrainedSubjectRow).where(TrainedSubjectRow.model == model))
        inherited = session.execute(
            select(TrainedSubjectRow.subject_hash, TrainedSubjectRow.key_id)
            .where(TrainedSubjectRow.model.in_(ancestors))
            .distinct()
        )
        hashes: dict[str, str] = {row.subject_hash: row.key_id for row in inherited}
        if gallery is not None:
            hashes.update(
                (self._hash(gallery, subject_id), self._key_id) for subject_id in subject_ids
            )
        session.add_all(
            TrainedSubjectRow(model=model, subject_hash=subject_hash, key_id=key_id)
            for subject_hash, key_id in sorted(hashes.items())  # not as they were enrolled
        )

    def carry(self, session: Session, gallery: str, subject_id: str, to: str) -> None:
        """Count the models that learned from a subject as having learned from `to` as well.

        For walks that change hands: which of them a model learned from is not known.
        """
        old, new = self._hash(gallery, subject_id), self._hash(gallery, to)
        known = select(TrainedSubjectRow.model).where(TrainedSubjectRow.subject_hash == new)
        models = select(TrainedSubjectRow.model).where(
            TrainedSubjectRow.subject_hash == old, TrainedSubjectRow.model.not_in(known)
        )
        session.add_all(
            TrainedSubjectRow(model=model, subject_hash=new, key_id=self._key_id)
            for model in session.scalars(models).all()
        )

    def models(self, session: Session, gallery: str, subject_ids: Sequence[str]) -> tuple[str, ...]:
        """Names of the models that learned from any of these subjects, and of all that may have."""
        if not subject_ids:
            return ()
        # Two ranges of an index: "another key than this" would read every row.
        model, key_id = TrainedSubjectRow.model, TrainedSubjectRow.key_id
        before = select(model).where(key_id < self._key_id)
        after = select(model).where(key_id > self._key_id)
        names = set(session.scalars(before.union(after)))
        hashes = (self._hash(gallery, subject_id) for subject_id in subject_ids)
        for some in map(TrainedSubjectRow.subject_hash.in_, in_pieces(hashes)):
            names.update(session.scalars(select(model).where(some).distinct()))
        return tuple(sorted(names))

    def _hash(self, gallery: str, subject_id: str) -> str:
        return hmac.new(self._key, f"{gallery}\0{subject_id}".encode(), "sha256").hexdigest()


def subjects_now(session: Session, sequence_ids: Sequence[str]) -> set[str]:
    """The present subjects of those sequences that are enrolled; some may have changed hands."""
    subjects: set[str] = set()
    for some in map(SequenceRow.id.in_, in_pieces(sequence_ids)):
        subjects.update(session.scalars(select(SequenceRow.subject_id).where(some)))
    return subjects


def _share_key(path: Path, store: FileStore) -> None:
    """Make the key's file of what the store has, which it has of the first; raises `BrokenKey`."""
    here = path.read_bytes() if path.exists() else None
    try:
        shared = store.keep_first(_IN_STORE, here or secrets.token_bytes(_KEY_BYTES))
    except StoreUnavailable:
        if here is None:
            raise
        _log.warning("%s is not compared with that of the store", _KEY_FILE)
        return
    if here is None:
        _make_key(path, shared)
    elif here != shared:
        raise BrokenKey(
            f"{_KEY_FILE} in the data folder is another than the store's. Remove the one that is "
            "not the deployment's; receipts will name every model recorded with it."
        )


def _make_key(path: Path, key: bytes) -> None:
    """Make the key's file, whole from the moment it is there; another process may be faster."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)

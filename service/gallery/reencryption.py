"""Encrypt all rows that are plain, or sealed with another key, with the first key.

This works in pieces, while the service runs. Finished rows carry the first key's name, so the next
run continues one that was interrupted. Silhouettes and embeddings never change otherwise, so a
piece is read and sealed without a lock; a row that another process sealed meanwhile is left alone.
So is a scene transform that was exchanged meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Engine,
    Update,
    delete,
    func,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from service.gallery.records import Progress
from service.gallery.sealing import SceneData, Sealing, sealing_of
from service.gallery.tables import (
    EmbeddingRow,
    EncryptionKeyRow,
    FoundWalkRow,
    SceneCohortRow,
    SceneRow,
    SequenceRow,
)
from service.storage.database import writing
from service.storage.encryption import KeyTrouble
from service.storage.vacuum import checkpoint_wal

_PIECE = 64  # rows: at 16 x 256 channels, 1 MB of embeddings


class _Sealed(NamedTuple):
    table: type[SequenceRow | EmbeddingRow | SceneRow | SceneCohortRow | FoundWalkRow]
    holds_data: ColumnElement[bool] = true()


_KEPT = (
    _Sealed(SequenceRow),
    _Sealed(EmbeddingRow),
    _Sealed(SceneRow, SceneRow.version.is_not(None)),
    _Sealed(SceneCohortRow),
    _Sealed(FoundWalkRow),
)
_COUNTED_AS = (0, 1, 2, 2, 0)  # sequences, embeddings, scenes


@dataclass(frozen=True, slots=True)
class Kept:
    """What one key holds; `key_id` is None for what is plain.

    Sequences are enrolled, or were found in footage and may still be enrolled; `scenes` are
    transforms and sums of who passed.
    """

    key_id: str | None
    sequences: int
    embeddings: int
    scenes: int = 0


def holdings(engine: Engine) -> list[Kept]:
    """How much each key holds; every key in use is there."""
    counts: dict[str | None, list[int]] = {}
    with Session(engine) as session:
        for known in session.scalars(select(EncryptionKeyRow.key_id)):
            counts[known] = [0, 0, 0]
        for position, kept in zip(_COUNTED_AS, _KEPT, strict=True):
            query = select(kept.table.key_id, func.count()).where(kept.holds_data)
            for key_id, count in session.execute(query.group_by(kept.table.key_id)):
                counts.setdefault(key_id, [0, 0, 0])[position] += count
    ordered = sorted(counts, key=lambda key_id: (key_id is not None, key_id))
    return [Kept(key_id, *counts[key_id]) for key_id in ordered]


def reencrypt(engine: Engine, progress: Progress = lambda _done, _total: None) -> int:
    """Seal everything with the engine's first key, then forget the others; the number of rows.

    Afterwards no row, and no page of the database's files, needs another key or is plain. Raises
    `KeyTrouble` without a key, and what opening a row raises.
    """
    sealing = sealing_of(engine)
    if sealing.key_id is None:
        raise KeyTrouble("there is no key in GAITID_ENCRYPTION_KEYS to encrypt with")
    done = 0
    total = sum(
        kept.sequences + kept.embeddings + kept.scenes
        for kept in holdings(engine)
        if kept.key_id != sealing.key_id
    )
    # Again until nothing is left: a process that was not restarted yet may still add to it.
    while not _retire_others(engine, sealing.key_id):
        for piece in (_sequences, _embeddings, _transforms, _cohorts, _found_walks):
            after: tuple[str, ...] = ("", "")
            while (last := piece(engine, sealing, after)) is not None:
                after, count = last
                done += count
                progress(done, max(done, total))
    checkpoint_wal(engine)
    return done


def _sequences(
    engine: Engine, sealing: Sealing, after: tuple[str, ...]
) -> tuple[tuple[str, ...], int] | None:
    """Seal the next silhouettes; the last one's key and how many, None when there are no more."""
    query = (
        select(
            SequenceRow.id, SequenceRow.silhouettes, SequenceRow.key_id, SequenceRow.content_hash
        )
        .where(SequenceRow.id > after[0], SequenceRow.key_id.is_distinct_from(sealing.key_id))
        .order_by(SequenceRow.id)
        .limit(_PIECE)
    )
    with Session(engine) as session:
        rows = session.execute(query).all()
    changes = [
        update(SequenceRow)
        .where(SequenceRow.id == row.id, SequenceRow.key_id.is_not_distinct_from(row.key_id))
        .values(
            silhouettes=sealing.reseal_silhouettes(row.id, row.silhouettes, row.key_id),
            key_id=sealing.key_id,
            content_hash=sealing.content_hash(
                sealing.silhouettes(row.id, row.silhouettes, row.key_id, hashed=row.content_hash)
            ),
        )
        for row in rows
    ]
    _write(engine, sealing, changes)
    return ((rows[-1].id,), len(rows)) if rows else None


def _embeddings(
    engine: Engine, sealing: Sealing, after: tuple[str, ...]
) -> tuple[tuple[str, ...], int] | None:
    """Seal the next embeddings; the last one's key and how many, None when there are no more."""
    place = tuple_(EmbeddingRow.sequence_id, EmbeddingRow.digest)
    query = (
        select(EmbeddingRow)
        .where(place > after, EmbeddingRow.key_id.is_distinct_from(sealing.key_id))
        .order_by(EmbeddingRow.sequence_id, EmbeddingRow.digest)
        .limit(_PIECE)
    )
    with Session(engine) as session:
        rows = session.scalars(query).all()
    changes = [
        update(EmbeddingRow)
        .where(
            EmbeddingRow.sequence_id == row.sequence_id,
            EmbeddingRow.digest == row.digest,
            EmbeddingRow.key_id.is_not_distinct_from(row.key_id),
        )
        .values(vector=sealing.reseal_embedding(row), checksum=None, key_id=sealing.key_id)
        for row in rows
    ]
    _write(engine, sealing, changes)
    return ((rows[-1].sequence_id, rows[-1].digest), len(rows)) if rows else None


def _found_walks(
    engine: Engine, sealing: Sealing, after: tuple[str, ...]
) -> tuple[tuple[str, ...], int] | None:
    """Seal the next walks found in footage, as `_sequences` does."""
    other = FoundWalkRow.key_id.is_distinct_from(sealing.key_id)
    query = (
        select(FoundWalkRow.id, FoundWalkRow.silhouettes, FoundWalkRow.key_id)
        .where(FoundWalkRow.id > after[0], other)
        .order_by(FoundWalkRow.id)
        .limit(_PIECE)
    )
    with Session(engine) as session:
        rows = session.execute(query).all()
    changes = [
        update(FoundWalkRow)
        .where(FoundWalkRow.id == row.id, FoundWalkRow.key_id.is_not_distinct_from(row.key_id))
        .values(
            silhouettes=sealing.reseal_silhouettes(row.id, row.silhouettes, row.key_id),
            key_id=sealing.key_id,
        )
        for row in rows
    ]
    _write(engine, sealing, changes)
    return ((rows[-1].id,), len(rows)) if rows else None


def _transforms(
    engine: Engine, sealing: Sealing, after: tuple[str, ...]
) -> tuple[tuple[str, ...], int] | None:
    """Seal the next scene transform; its key and 1, None when there are no more."""
    return _of_scenes(engine, sealing, after, SceneRow, "transform")


def _cohorts(
    engine: Engine, sealing: Sealing, after: tuple[str, ...]
) -> tuple[tuple[str, ...], int] | None:
    """Likewise the sums of who passed."""
    return _of_scenes(engine, sealing, after, SceneCohortRow, "sums")


def _of_scenes(
    engine: Engine,
    sealing: Sealing,
    after: tuple[str, ...],
    table: type[SceneRow | SceneCohortRow],
    what: SceneData,
) -> tuple[tuple[str, ...], int] | None:
    place, data = tuple_(table.gallery_id, table.digest), getattr(table, what)
    query = (
        select(table.gallery_id, table.digest, table.key_id, data.label("data"))
        .where(place > after, data.is_not(None), table.key_id.is_distinct_from(sealing.key_id))
        .order_by(table.gallery_id, table.digest)
        .limit(1)  # they may be megabytes
    )
    with Session(engine) as session:
        row = session.execute(query).one_or_none()
    if row is None:
        return None
    plain = sealing.scene(what, row.gallery_id, row.digest, row.data, row.key_id)
    sealed = sealing.seal_scene(what, row.gallery_id, row.digest, plain)
    change = (
        update(table)
        .where(
            table.gallery_id == row.gallery_id,
            table.digest == row.digest,
            data == row.data,  # another one may have come meanwhile
        )
        .values({what: sealed, "key_id": sealing.key_id})
    )
    _write(engine, sealing, [change])
    return (row.gallery_id, row.digest), 1


def _write(engine: Engine, sealing: Sealing, changes: Sequence[Update]) -> None:
    if changes:
        with Session(writing(engine)) as session, session.begin():
            sealing.require_current(session)
            for change in changes:
                session.execute(change)


def _retire_others(engine: Engine, key_id: str) -> bool:
    """Forget every other key, unless something is still kept with one, or plain."""
    with Session(writing(engine)) as session, session.begin():
        # Locks the keys: a transaction that writes with one of them ends before this, or waits.
        session.scalars(select(EncryptionKeyRow).with_for_update()).all()
        for kept in _KEPT:
            column = kept.table.key_id
            left = select(column).where(kept.holds_data, column.is_distinct_from(key_id)).limit(1)
            if session.execute(left).first() is not None:
                return False
        session.execute(delete(EncryptionKeyRow).where(EncryptionKeyRow.key_id != key_id))
        return True

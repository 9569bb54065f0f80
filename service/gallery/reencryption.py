"""Encrypt all rows that are plain, or sealed with another key, with the first key.

This works in pieces, while the service runs. Finished rows carry the first key's name, so the next
run continues one that was interrupted. Silhouettes and embeddings never change otherwise, so a
piece is read and sealed without a lock; a row that another process sealed meanwhile is left alone.
So is a scene transform that was exchanged meanwhile. Where walks have keys of their own, those are
sealed anew, and the walks that had them already stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Engine,
    delete,
    func,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.gallery.records import Progress
from service.gallery.sealing import KEYS_IN_USE, ErasedWalk, SceneData, Sealing, sealing_of
from service.gallery.tables import (
    EmbeddingRow,
    EncryptionKeyRow,
    FoundWalkRow,
    SceneCohortRow,
    SceneRow,
    SequenceRow,
)
from service.storage.database import take_turns, writing
from service.storage.encryption import KeyTrouble
from service.storage.vacuum import clear_traces

_PIECE = 64  # rows: at 16 x 256 channels, 1 MB of embeddings
_IDLE = 3  # times that there is something left, and nothing can be done

_Row = Any  # of the columns that were read
_Columns = tuple[InstrumentedAttribute[Any], ...]


class _Sealed(NamedTuple):
    """Rows of a table that hold what is sealed.

    Attributes:
        table: with a column `key_id`.
        keys: its primary key.
        columns: that sealing anew reads beside.
        anew: those of a row that change.
        exchanged: differs in a row that was written meanwhile.
        holds_data: which rows hold any.
        walk: of the columns, what names the walk; None where a row is of a whole gallery.
        large: whether one may be megabytes.
    """

    table: type[SequenceRow | EmbeddingRow | SceneRow | SceneCohortRow | FoundWalkRow]
    keys: _Columns
    columns: _Columns
    anew: Callable[[Sealing, _Row], dict[str, Any]]
    exchanged: InstrumentedAttribute[Any]
    holds_data: ColumnElement[bool] = true()
    walk: str | None = "id"
    large: bool = False

    def key_id(self, sealing: Sealing) -> str | None:
        """What rows carry that are sealed now."""
        return sealing.key_id if self.walk is None else sealing.walks_key_id


def _walk(sealing: Sealing, row: _Row) -> dict[str, Any]:
    return {"silhouettes": sealing.reseal_silhouettes(row.id, row.silhouettes, row.key_id)}


def _sequence(sealing: Sealing, row: _Row) -> dict[str, Any]:
    silhouettes = sealing.silhouettes(row.id, row.silhouettes, row.key_id, hashed=row.content_hash)
    return {**_walk(sealing, row), "content_hash": sealing.content_hash(silhouettes)}


def _embedding(sealing: Sealing, row: _Row) -> dict[str, Any]:
    return {"vector": sealing.reseal_embedding(row), "checksum": None}


def _scene(what: SceneData) -> Callable[[Sealing, _Row], dict[str, Any]]:
    def anew(sealing: Sealing, row: _Row) -> dict[str, Any]:
        gallery_id, digest = row.gallery_id, row.digest
        plain = sealing.scene(what, gallery_id, digest, getattr(row, what), row.key_id)
        return {what: sealing.seal_scene(what, gallery_id, digest, plain)}

    return anew


_KEPT = (
    _Sealed(
        SequenceRow,
        (SequenceRow.id,),
        (SequenceRow.silhouettes, SequenceRow.content_hash),
        _sequence,
        exchanged=SequenceRow.key_id,
    ),
    _Sealed(
        EmbeddingRow,
        (EmbeddingRow.sequence_id, EmbeddingRow.digest),
        (EmbeddingRow.parts, EmbeddingRow.vector, EmbeddingRow.checksum),
        _embedding,
        exchanged=EmbeddingRow.key_id,
        walk="sequence_id",
    ),
    _Sealed(
        SceneRow,
        (SceneRow.gallery_id, SceneRow.digest),
        (SceneRow.transform,),
        _scene("transform"),
        exchanged=SceneRow.transform,
        walk=None,
        holds_data=SceneRow.version.is_not(None),
        large=True,
    ),
    _Sealed(
        SceneCohortRow,
        (SceneCohortRow.gallery_id, SceneCohortRow.digest),
        (SceneCohortRow.sums,),
        _scene("sums"),
        exchanged=SceneCohortRow.sums,
        walk=None,
        large=True,
    ),
    _Sealed(
        FoundWalkRow,
        (FoundWalkRow.id,),
        (FoundWalkRow.silhouettes,),
        _walk,
        exchanged=FoundWalkRow.key_id,
    ),
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
        (held.sequences + held.embeddings) * (held.key_id != sealing.walks_key_id)
        + held.scenes * (held.key_id != sealing.key_id)
        for held in holdings(engine)
    )
    # Again until nothing is left: a process that was not restarted yet may still add to it.
    idle = 0
    while not _retire_others(engine, sealing):
        before = done
        if sealing.walk_keys is not None:
            sealing.walk_keys.rewrap()
        for kept in _KEPT:
            after: tuple[str, ...] = ("",) * len(kept.keys)
            while rows := _seal_next(engine, sealing, kept, after):
                after = tuple(getattr(rows[-1], key.key) for key in kept.keys)
                done += len(rows)
                progress(done, max(done, total))
        idle = idle + 1 if done == before else 0
        if idle == _IDLE:
            raise KeyTrouble("some keys of walks are sealed with a key that is not here")
    clear_traces(engine)
    return done


def _seal_next(
    engine: Engine, sealing: Sealing, kept: _Sealed, after: tuple[str, ...]
) -> Sequence[_Row]:
    """Seal the next rows whose keys come after these; the rows as they were, none at the end."""
    table, key_id = kept.table, kept.table.key_id
    query = (
        select(*kept.keys, key_id, *kept.columns)
        .where(
            tuple_(*kept.keys) > after,
            kept.holds_data,
            key_id.is_distinct_from(kept.key_id(sealing)),
        )
        .order_by(*kept.keys)
        .limit(1 if kept.large else _PIECE)
    )
    with Session(engine) as session:
        rows = session.execute(query).all()
    if kept.walk is not None:
        sealing.begin({getattr(row, kept.walk) for row in rows})
    changes = []
    for row in rows:
        with suppress(ErasedWalk):  # meanwhile
            changes.append(
                update(table)
                .where(
                    *(key == getattr(row, key.key) for key in kept.keys),
                    kept.exchanged.is_not_distinct_from(getattr(row, kept.exchanged.key)),
                )
                .values(kept.anew(sealing, row) | {"key_id": kept.key_id(sealing)})
            )
    if changes:
        with Session(writing(engine)) as session, session.begin():
            sealing.require_current(session)
            for change in changes:
                session.execute(change)
    return rows


def _retire_others(engine: Engine, sealing: Sealing) -> bool:
    """Forget every other key, unless something is still kept with one, or plain."""
    with Session(writing(engine)) as session, session.begin():
        # A transaction that writes, with a key or without, ends before this, or waits.
        take_turns(session, KEYS_IN_USE)
        for kept in _KEPT:
            column = kept.table.key_id
            other = column.is_distinct_from(kept.key_id(sealing))
            left = select(column).where(kept.holds_data, other).limit(1)
            if session.execute(left).first() is not None:
                return False
        if sealing.walk_keys is not None and sealing.walk_keys.needs_others():
            return False
        in_use = [sealing.key_id, sealing.walks_key_id]
        session.execute(delete(EncryptionKeyRow).where(EncryptionKeyRow.key_id.not_in(in_use)))
        return True

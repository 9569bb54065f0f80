"""End the keys of erased walks, which makes every copy of those walks unreadable.

The transaction that deletes a walk notes it in the same database (`mark_ended`), and its key is
ended after the commit (`shred`). If the process dies in between, or the store of walk keys is out
of reach, any process of the deployment does it later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import ColumnElement, Engine, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.gallery.sealing import sealing_of
from service.gallery.tables import EndedWalkRow, FoundWalkRow, SequenceRow
from service.storage.database import in_pieces, writing
from service.storage.vacuum import clear_traces
from service.storage.walk_keys import STORE, WalkKeys

_IN_FLIGHT = timedelta(days=1)  # no walk is added so long after its key was made
_AT_ONCE = 1000  # sequences that are read at once
_log = logging.getLogger(__name__)

Shredded = Literal["ended", "pending"]


def mark_ended(
    session: Session, table: type[SequenceRow | FoundWalkRow], which: ColumnElement[bool]
) -> None:
    """Note which of these rows have keys of their own; call it before they are deleted."""
    sealed = select(table.id).where(which, table.key_id.startswith(STORE))
    session.execute(insert(EndedWalkRow).from_select(["walk_id"], sealed))


def shred(engine: Engine) -> Shredded | None:
    """End the keys of all walks that were erased; None where walks have no keys of their own.

    `pending` if the store of walk keys cannot be reached, or has not let go of them yet. The
    erasures are committed, so that is only logged.
    """
    walk_keys = sealing_of(engine).walk_keys
    if walk_keys is None:
        return None
    try:
        with Session(engine) as session:
            ended = session.scalars(select(EndedWalkRow.walk_id)).all()
        if ended:
            if not walk_keys.end(ended):
                return "pending"
            with Session(writing(engine)) as session, session.begin():
                for these in map(EndedWalkRow.walk_id.in_, in_pieces(ended)):
                    session.execute(delete(EndedWalkRow).where(these))
    except (OSError, SQLAlchemyError):
        _log.exception("keys of erased walks are left until the next sweep")
        return "pending"
    return "ended"


def clear(engine: Engine) -> tuple[Shredded | None, bool]:
    """What follows every transaction that erased walks: `shred`, then rid the database's files.

    Returns what `shred` and `clear_traces` do.
    """
    return shred(engine), clear_traces(engine)


def sweep(engine: Engine, at: datetime) -> None:
    """End what is left to end, and drop keys whose walks were never added."""
    walk_keys = sealing_of(engine).walk_keys
    if walk_keys is None:
        return
    shred(engine)
    try:
        walk_keys.settle(at - _IN_FLIGHT, lambda ids: _kept(engine, ids))
        walk_keys.tidy()
    except (OSError, SQLAlchemyError):  # the rest must be swept
        _log.exception("keys of walks could not be tidied")


def erased_before(engine: Engine) -> Iterator[set[str]]:
    """Sequences whose keys ended but which are there: an older database was restored."""
    walk_keys = sealing_of(engine).walk_keys
    if walk_keys is not None:
        for ids in walk_keys.every(ended=True):
            yield _kept(engine, ids, (SequenceRow,))


def unreadable(engine: Engine, walk_keys: WalkKeys) -> Iterator[set[str]]:
    """Sequences with keys of their own which the store has not got."""
    query = (
        select(SequenceRow.id)
        .where(SequenceRow.key_id == walk_keys.name)
        .order_by(SequenceRow.id)
        .limit(_AT_ONCE)
    )
    after = ""
    while True:
        with Session(engine) as session:
            ids = session.scalars(query.where(SequenceRow.id > after)).all()
        if not ids:
            return
        known = walk_keys.known(ids)
        yield {sequence_id for sequence_id in ids if not known.get(sequence_id)}
        after = ids[-1]


def end_strays(engine: Engine, walk_keys: WalkKeys) -> int:
    """End every key whose walk is not there; returns how many.

    Only for a store and a database that are known to be the newest, and that nobody adds to.
    """
    count = 0
    for ids in walk_keys.every(ended=False):
        strays = set(ids) - _kept(engine, ids)
        count += len(strays)
        if strays:
            walk_keys.end(strays)
    return count


def _kept(
    engine: Engine,
    ids: list[str],
    tables: tuple[type[SequenceRow | FoundWalkRow], ...] = (SequenceRow, FoundWalkRow),
) -> set[str]:
    """Which of these walks are in the database."""
    with Session(engine) as session:
        return {
            walk_id
            for table in tables
            for walk_id in session.scalars(select(table.id).where(table.id.in_(ids)))
        }

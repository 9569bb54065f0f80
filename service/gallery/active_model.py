"""The model that each gallery is searched with: read it, swap it, swap it back.

A gallery's row keeps the active model and the previous one, each with its operating point, so that
going back only exchanges them. The functions that take a session are for a transaction of the
caller's that holds the write lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Select,
    bindparam,
    delete,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session

from models.card import ModelReference
from service.foundation.errors import Conflict, Reason
from service.gallery.store import gallery_model, missing_gallery
from service.gallery.tables import (
    EmbeddingRow,
    GalleryRow,
    SceneCohortRow,
    SceneRow,
    SequenceRow,
)
from service.storage.database import take_turns, writing

MODELS_IN_USE: Final = "models"
"""At which those who put models to use, or remove them, take turns."""
_PRUNED_AT_ONCE = 500  # embeddings a transaction: other writers wait for a moment only


@dataclass(frozen=True, slots=True)
class GalleryModels:
    """A gallery, its newest revision, and its models; `active` None is the deployment's own."""

    gallery_id: str
    name: str
    revision: int
    active: ModelReference | None
    previous: ModelReference | None
    index_epoch: int


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback exchanged."""

    gallery: str
    active: ModelReference
    previous: ModelReference


_MODELS = select(
    GalleryRow.id,
    GalleryRow.name,
    GalleryRow.revision,
    GalleryRow.active_model,
    GalleryRow.active_digest,
    GalleryRow.previous_model,
    GalleryRow.previous_digest,
    GalleryRow.index_epoch,
)


_MODELS_OF = _MODELS.where(GalleryRow.name == bindparam("gallery"))  # read at every request


def models_of(engine: Engine, gallery: str) -> GalleryModels:
    """One gallery's models; raises `NotFound`."""
    with engine.connect() as connection:
        return models_in(connection, gallery)


def models_in(transaction: Session | Connection, gallery: str) -> GalleryModels:
    """One gallery's models, as a transaction sees them; raises `NotFound`."""
    row = transaction.execute(_MODELS_OF, {"gallery": gallery}).one_or_none()
    if row is None:
        raise missing_gallery(gallery)
    return _models(row)


def models_by_id(engine: Engine, gallery_ids: Iterable[str]) -> list[GalleryModels]:
    """The models of those of these galleries that are still there."""
    return _read(engine, _MODELS.where(GalleryRow.id.in_(list(gallery_ids))))


def every_gallery(engine: Engine) -> list[GalleryModels]:
    """The models of every gallery, by the galleries' names."""
    return _read(engine, _MODELS.order_by(GalleryRow.name))


def _read(engine: Engine, query: Select[*tuple[Any, ...]]) -> list[GalleryModels]:
    with Session(engine) as session:
        return [_models(row) for row in session.execute(query)]


def _models(row: Row[*tuple[Any, ...]]) -> GalleryModels:
    return GalleryModels(
        gallery_id=row.id,
        name=row.name,
        revision=row.revision,
        active=gallery_model(row.active_model, row.active_digest),
        previous=gallery_model(row.previous_model, row.previous_digest),
        index_epoch=row.index_epoch,
    )


def lock_gallery(session: Session, gallery_id: str) -> bool:
    """Lock the gallery's row until the transaction ends; False when the gallery is gone.

    An enrolment raises the gallery's revision first, and so waits for it.
    """
    row = select(GalleryRow.id).where(GalleryRow.id == gallery_id).with_for_update()
    return session.scalar(row) is not None


def count_sequences(session: Session, gallery_id: str) -> int:
    """How many sequences the gallery has."""
    query = select(func.count()).select_from(SequenceRow)
    return session.scalar(query.where(SequenceRow.gallery_id == gallery_id)) or 0


def swap(
    session: Session,
    gallery_id: str,
    new: ModelReference,
    old: ModelReference,
    operating_point: dict[str, Any] | None,
) -> None:
    """Make `new` the active model and `old` the previous one.

    `operating_point` is what is decided by under the new model; None leaves the old model's, which
    is stale then. The old model keeps its own in any case.
    """
    take_turns(session, MODELS_IN_USE)
    row = session.get_one(GalleryRow, gallery_id)
    row.active_model, row.active_digest = new.name, new.digest
    row.previous_model, row.previous_digest = old.name, old.digest
    # The new model was measured without a scene transform; one from long ago does not come back.
    session.execute(
        delete(SceneRow).where(SceneRow.gallery_id == gallery_id, SceneRow.digest == new.digest)
    )
    row.previous_operating_point = row.operating_point
    row.operating_point = operating_point or row.operating_point
    session.flush()


def swap_back(session: Session, gallery: str) -> RolledBack:
    """Exchange active and previous model; raises `NotFound`, and `Conflict` without a previous."""
    row = session.scalar(select(GalleryRow).where(GalleryRow.name == gallery).with_for_update())
    if row is None:
        raise missing_gallery(gallery)
    take_turns(session, MODELS_IN_USE)
    active = gallery_model(row.active_model, row.active_digest)
    previous = gallery_model(row.previous_model, row.previous_digest)
    if active is None or previous is None:
        raise Conflict(
            f"The gallery {gallery!r} has had no other model since it was made: there is nothing "
            "to roll back to. POST /models/{name}/activate changes its model.",
            Reason("gallery", "no_previous_model"),
            slug="no-previous-model",
        )
    # Without a point of the old model's, the one there is stays: it is stale, and so found again.
    before = row.operating_point
    now_active = row.previous_operating_point or before
    row.active_model, row.active_digest = previous.name, previous.digest
    row.previous_model, row.previous_digest = active.name, active.digest
    row.operating_point, row.previous_operating_point = now_active, before
    session.flush()
    return RolledBack(gallery, previous, active)


def adopt(engine: Engine, gallery_id: str, was: ModelReference, digest: str) -> None:
    """Follow a checkpoint that was replaced on disk under the name that the gallery uses."""
    with Session(writing(engine)) as session, session.begin():
        session.execute(
            update(GalleryRow)
            .where(GalleryRow.id == gallery_id, GalleryRow.active_digest == was.digest)
            .values(active_digest=digest)
        )


def renew_indexes(session: Session, gallery_id: str) -> None:
    """Make every process build the gallery's index anew from the database."""
    session.execute(
        update(GalleryRow)
        .where(GalleryRow.id == gallery_id)
        .values(index_epoch=GalleryRow.index_epoch + 1)
    )


def prune(engine: Engine, gallery_id: str, keep: Iterable[str]) -> int:
    """Drop the gallery's embeddings of all checkpoints but these; returns how many went.

    What was made of them, scene transforms and the sums of who passed, goes first. Piece by piece,
    each in a transaction. A process that still answers with a checkpoint whose embeddings went
    makes those anew that it needs.
    """
    kept = list(keep)
    of_gallery = exists().where(
        SequenceRow.id == EmbeddingRow.sequence_id, SequenceRow.gallery_id == gallery_id
    )
    chosen = (
        select(EmbeddingRow.sequence_id, EmbeddingRow.digest)
        .where(of_gallery, EmbeddingRow.digest.not_in(kept))
        .limit(_PRUNED_AT_ONCE)
    )
    gone = 0
    with Session(writing(engine)) as session, session.begin():
        for table in (SceneRow, SceneCohortRow):
            session.execute(
                delete(table).where(table.gallery_id == gallery_id, table.digest.not_in(kept))
            )
    while True:
        with Session(writing(engine)) as session, session.begin():
            rows = session.execute(chosen).all()
            for sequence_id, digest in rows:
                session.execute(
                    delete(EmbeddingRow).where(
                        EmbeddingRow.sequence_id == sequence_id, EmbeddingRow.digest == digest
                    )
                )
        if not rows:
            return gone
        gone += len(rows)

"""Check and complete what a gallery's model made of it: a reindex job's work.

The database is the truth and indexes follow it; this makes that so again after whatever happened.
Embeddings that are not what the model gives (another shape, numbers that are none, not sealed as
theirs) are dropped and made anew, missing ones are made, those of models that are neither active
nor previous are dropped. With the job's end every process builds its index anew from the database.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from models.encoder import Encoder
from service.activation import active_pin
from service.database import writing
from service.gallery.pins import pinned, prune
from service.gallery.sealing import DamagedEmbedding, Sealing, sealing_of
from service.gallery.store import GalleryStore, embedding_of
from service.gallery.tables import EmbeddingRow, SequenceRow
from service.model_registry import resolve
from service.reembedding import Reembedding
from service.settings import Settings

_AT_ONCE = 500


class CannotReindex(Exception):
    """The gallery's model is not there as it was activated; the text says so."""


class Reindexed(BaseModel):
    """What was done, and in which gallery: its name may be another's by now."""

    model_config = ConfigDict(frozen=True)

    gallery_id: str
    gallery: str
    model: str
    digest: str
    repaired: int
    embedded: int
    dropped: int


def reindex(
    settings: Settings, engine: Engine, gallery: str, progress: Callable[[int, int], None]
) -> Reindexed:
    """Do it; raises `NotFound` for a gallery or model that is not there, and `CannotReindex`."""
    row = pinned(engine, gallery)
    active = active_pin(settings, row)
    try:
        encoder = Encoder.open(resolve(settings, active.name), settings.device)
    except ValueError as error:
        raise CannotReindex(f"the active model cannot be loaded: {error}") from error
    if encoder.digest != active.digest:
        raise CannotReindex(
            f"the model {active.name!r} was replaced on disk; restart the service first"
        )
    card = encoder.card
    repaired = _drop_broken(engine, row.gallery_id, active.digest, (card.parts, card.channels))
    reembedding = Reembedding(GalleryStore(engine), encoder.encode, active.digest)
    embedded = reembedding.everything(progress, row.gallery_id)
    keep = {active.digest} | ({row.previous.digest} if row.previous else set())
    return Reindexed(
        gallery_id=row.gallery_id,
        gallery=gallery,
        model=active.name,
        digest=active.digest,
        repaired=repaired,
        embedded=embedded,
        dropped=prune(engine, row.gallery_id, keep),
    )


def _drop_broken(engine: Engine, gallery_id: str, digest: str, shape: tuple[int, int]) -> int:
    sealing = sealing_of(engine)
    dropped = 0
    after = ""
    while True:
        with Session(engine) as session:
            rows = session.scalars(
                select(EmbeddingRow)
                .join(SequenceRow, SequenceRow.id == EmbeddingRow.sequence_id)
                .where(
                    SequenceRow.gallery_id == gallery_id,
                    EmbeddingRow.digest == digest,
                    EmbeddingRow.sequence_id > after,
                )
                .order_by(EmbeddingRow.sequence_id)
                .limit(_AT_ONCE)
            ).all()
        if not rows:
            return dropped
        after = rows[-1].sequence_id
        broken = [row.sequence_id for row in rows if _broken(row, shape, sealing)]
        if broken:
            with Session(writing(engine)) as session, session.begin():
                session.execute(
                    delete(EmbeddingRow).where(
                        EmbeddingRow.sequence_id.in_(broken), EmbeddingRow.digest == digest
                    )
                )
            dropped += len(broken)


def _broken(row: EmbeddingRow, shape: tuple[int, int], sealing: Sealing) -> bool:
    try:
        return embedding_of(row, sealing).shape != shape
    except DamagedEmbedding:
        return True

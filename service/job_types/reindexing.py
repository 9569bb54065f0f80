"""Reindexing: check and complete what is stored of a gallery under its model.

`gaitid reindex-gallery` reads every sequence. It makes an embedding anew that is missing, that is
not what was written (another checksum or shape, numbers that are not finite, sealed for another
sequence), or that was written before there were checksums. It drops embeddings of models that are
neither active nor previous. When the job ends, every process builds its index of the gallery anew
from the database.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, and_, select
from sqlalchemy.orm import Session

from models.encoder.encoder import Encoder
from service.foundation.settings import Settings
from service.gallery.active_model import (
    count_sequences,
    lock_gallery,
    models_of,
    prune,
    renew_indexes,
)
from service.gallery.records import Embedding, Progress, Silhouettes
from service.gallery.sealing import DamagedEmbedding, DamagedSilhouettes, ErasedWalk, sealing_of
from service.gallery.store import GalleryStore
from service.gallery.tables import EmbeddingRow, SequenceRow
from service.job_types.commands import deployment, program
from service.job_types.requests import ReindexRequest
from service.jobs.job import Job
from service.jobs.job_type import JobRefused, Outcome, Step, partial
from service.jobs.scratch import scratch
from service.serving.registry import active_model, resolve

_log = logging.getLogger(__name__)
_AT_ONCE = 32  # sequences in memory: 1000 frames each are 4 MB
_SAME = 0.999  # the cosine of two embeddings of one walk, made on two devices


class CannotReindex(Exception):
    """The gallery's model is not there as it was activated; the text says so."""


class Reindexed(BaseModel):
    """What was done, and in which gallery: its name may be another's by now.

    Attributes:
        repaired: damaged embeddings that were made anew.
        embedded: embeddings that were made because none, or a damaged one, was stored.
        checked: embeddings without a checksum that proved right, and have one now.
        dropped: embeddings of models that are neither active nor previous.
        damaged_walks: sequences with damaged silhouettes, which nothing can embed again.
    """

    model_config = ConfigDict(frozen=True)

    gallery_id: str
    gallery: str
    model: str
    digest: str
    repaired: int
    embedded: int
    checked: int
    dropped: int
    damaged_walks: int


class _Walk(NamedTuple):
    sequence: SequenceRow
    silhouettes: bytes
    stored: EmbeddingRow | None


class _ToEmbed(NamedTuple):
    sequence_id: str
    silhouettes: Silhouettes
    is_stored: bool
    before: Embedding | None  # None if it is missing or damaged


@dataclass(frozen=True, slots=True)
class ReindexJob:
    """Completes a gallery's embeddings and renews its indexes."""

    settings: Settings
    engine: Engine

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Check, complete and prune, in one command."""
        gallery = ReindexRequest.model_validate(job.request).gallery
        out = _done(folder)
        command = program("service", "reindex-gallery", gallery, str(partial(out)))
        return (Step("reindexing", command, output=out, environment=deployment(self.settings)),)

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Make every process build the gallery's index anew; refused if it was erased."""
        del job
        done = Reindexed.model_validate_json(_done(folder).read_bytes())

        def renew(session: Session) -> None:
            if not lock_gallery(session, done.gallery_id):
                raise JobRefused("the gallery was erased while it was reindexed")
            renew_indexes(session, done.gallery_id)

        return Outcome(done.model_dump(exclude={"gallery_id"}), in_transaction=renew)


def reindex(settings: Settings, engine: Engine, gallery: str, progress: Progress) -> Reindexed:
    """Check and complete a gallery; raises `NotFound` for it or its model, and `CannotReindex`."""
    row = models_of(engine, gallery)
    active = active_model(settings, engine, row)
    try:
        encoder = Encoder.for_uploads(resolve(settings, engine, active.name), settings.device)
    except ValueError as error:
        raise CannotReindex(f"the active model cannot be loaded: {error}") from error
    if encoder.digest != active.digest:
        raise CannotReindex(
            f"the model {active.name!r} was replaced on disk; restart the service first"
        )
    with Session(engine) as session:
        total = count_sequences(session, row.gallery_id)
    check = _Check(engine, encoder)
    done = 0
    for walks in _pages(engine, row.gallery_id, encoder.digest):
        progress(done, max(total, done + len(walks)))
        check.batch(walks)
        done += len(walks)
    keep = {active.digest} | ({row.previous.digest} if row.previous else set())
    return Reindexed(
        gallery_id=row.gallery_id,
        gallery=gallery,
        model=active.name,
        digest=active.digest,
        repaired=check.repaired,
        embedded=check.embedded,
        checked=check.checked,
        dropped=prune(engine, row.gallery_id, keep),
        damaged_walks=check.damaged_walks,
    )


def _pages(engine: Engine, gallery_id: str, digest: str) -> Iterator[Sequence[_Walk]]:
    """The gallery's sequences with their silhouettes and embeddings, in order of ids."""
    after = ""
    query = (
        select(SequenceRow, SequenceRow.silhouettes, EmbeddingRow)
        .outerjoin(
            EmbeddingRow,
            and_(EmbeddingRow.sequence_id == SequenceRow.id, EmbeddingRow.digest == digest),
        )
        .where(SequenceRow.gallery_id == gallery_id)
        .order_by(SequenceRow.id)
        .limit(_AT_ONCE)
    )
    while True:
        with Session(engine) as session:
            rows = [_Walk(*row) for row in session.execute(query.where(SequenceRow.id > after))]
        if not rows:
            return
        yield rows
        after = rows[-1].sequence.id


class _Check:
    """Checks sequences, makes the embeddings that need it and counts."""

    def __init__(self, engine: Engine, encoder: Encoder) -> None:
        self._store = GalleryStore(engine)
        self._sealing = sealing_of(engine)
        self._encoder = encoder
        self.repaired = self.embedded = self.checked = self.damaged_walks = 0

    def batch(self, walks: Sequence[_Walk]) -> None:
        """Check and complete these sequences."""
        to_embed: list[_ToEmbed] = []
        hopeless: list[str] = []
        for sequence, kept, stored in walks:
            try:
                before = None if stored is None else self._open(stored)
                silhouettes = self._sealing.silhouettes(
                    sequence.id, kept, sequence.key_id, hashed=sequence.content_hash
                )
            except ErasedWalk:  # since the page was read
                continue
            except DamagedSilhouettes as error:
                self.damaged_walks += 1
                _log.error("%s", error)
                if stored is not None and before is None:
                    hopeless.append(sequence.id)
                continue
            if stored is None or before is None or not _has_checksum(stored):
                to_embed.append(_ToEmbed(sequence.id, silhouettes, stored is not None, before))
        if hopeless:  # else a search would say that a reindex repairs it
            self._store.drop_embeddings(self._encoder.digest, hopeless)
        if to_embed:
            self._embed(to_embed)

    def _open(self, stored: EmbeddingRow) -> Embedding | None:
        """The embedding; None if it is damaged."""
        try:
            embedding = self._sealing.embedding(stored)
        except DamagedEmbedding:
            return None
        card = self._encoder.card
        return embedding if embedding.shape == (card.parts, card.channels) else None

    def _embed(self, walks: Sequence[_ToEmbed]) -> None:
        made = self._encoder.encode([walk.silhouettes for walk in walks])
        digest, pairs = self._encoder.digest, list(zip(walks, made, strict=True))
        # Another process that embeds a missing one meanwhile makes an equal embedding.
        self._store.add_embeddings(
            digest, ((walk.sequence_id, new) for walk, new in pairs if not walk.is_stored)
        )
        stored = [(walk.sequence_id, new) for walk, new in pairs if walk.is_stored]
        if stored:
            self._store.add_embeddings(digest, stored, replace=True)
        equal = sum(walk.before is not None and _same(walk.before, new) for walk, new in pairs)
        self.checked += equal
        self.repaired += len(stored) - equal
        self.embedded += len(walks) - equal


def _has_checksum(stored: EmbeddingRow) -> bool:
    return stored.key_id is not None or stored.checksum is not None  # a seal has its own


def _same(one: Embedding, other: Embedding) -> bool:
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    return bool(a @ b >= _SAME * np.linalg.norm(a) * np.linalg.norm(b))


def _done(folder: Path) -> Path:
    return scratch(folder).absolute() / "reindexed.json"

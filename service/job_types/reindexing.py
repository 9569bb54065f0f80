"""Check and complete what is stored of a gallery under its model: a reindex job's work.

The database is the truth and indexes follow it; this makes that so again after whatever happened.
Every walk is read. Of each whose embedding is missing, or is not what was written (another
checksum, another shape, numbers that are none, not sealed as its own), it is made anew, and also
where nobody can tell: of one that was written before there were checksums. Embeddings of models
that are neither active nor previous are dropped. With the job's end every process builds its index
anew from the database.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, and_, select
from sqlalchemy.orm import Session

from models.encoder import Encoder
from service.foundation.settings import Settings
from service.gallery.active_model import count_sequences, lock_gallery, pinned, prune, renew_indexes
from service.gallery.records import Embedding, Progress, Silhouettes
from service.gallery.sealing import DamagedEmbedding, DamagedSilhouettes, sealing_of
from service.gallery.store import GalleryStore, embedding_of
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
        repaired: embeddings that were damaged, and made anew where that can be done.
        embedded: those that were made, for want of a whole one.
        checked: those without a checksum that were made anew, were as they should be and have one.
        dropped: those of models that nobody needs.
        damaged_walks: sequences of which the silhouettes are damaged: nothing can embed them again.
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


class _State(Enum):
    SOUND, MISSING, BROKEN, UNKNOWN = range(4)


class _Walk(NamedTuple):
    sequence: SequenceRow
    silhouettes: bytes
    stored: EmbeddingRow | None


class ReindexJob:
    """Makes a gallery's embeddings complete, and its indexes equal to the database."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        del engine  # every job type is constructed with one
        self._settings = settings

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        """Check, complete and prune, in one command."""
        gallery = ReindexRequest.model_validate(job.request).gallery
        out = _done(folder)
        command = program("service", "reindex-gallery", gallery, str(partial(out)))
        return (Step("reindexing", command, output=out, environment=deployment(self._settings)),)

    def complete(self, job: Job, folder: Path) -> Outcome:
        """Have the indexes built anew, of the gallery that was reindexed if it is still there."""
        del job
        done = Reindexed.model_validate_json(_done(folder).read_bytes())

        def renew(session: Session) -> None:
            if not lock_gallery(session, done.gallery_id):
                raise JobRefused("the gallery was erased while it was reindexed")
            renew_indexes(session, done.gallery_id)

        return Outcome(done.model_dump(exclude={"gallery_id"}), in_transaction=renew)


def reindex(settings: Settings, engine: Engine, gallery: str, progress: Progress) -> Reindexed:
    """Do it; raises `NotFound` for a gallery or model that is not there, and `CannotReindex`."""
    row = pinned(engine, gallery)
    active = active_model(settings, row)
    try:
        encoder = Encoder.open(resolve(settings, active.name), settings.device)
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
        check.page(walks)
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
    """Looks at sequences, mends what it can and counts."""

    def __init__(self, engine: Engine, encoder: Encoder) -> None:
        self._store = GalleryStore(engine)
        self._sealing = sealing_of(engine)
        self._encoder = encoder
        self.repaired = self.embedded = self.checked = self.damaged_walks = 0

    def page(self, rows: Sequence[_Walk]) -> None:
        """Do all that is to be done for these sequences."""
        to_make: list[tuple[str, _State, Embedding | None, Silhouettes]] = []
        hopeless: list[str] = []
        for sequence, kept, stored in rows:
            state, embedding = self._look(stored)
            try:
                walk = self._sealing.silhouettes(
                    sequence.id, kept, sequence.key_id, hashed=sequence.content_hash
                )
            except DamagedSilhouettes as error:
                self.damaged_walks += 1
                _log.error("%s", error)
                if state is _State.BROKEN:
                    hopeless.append(sequence.id)
                continue
            if state is not _State.SOUND:
                to_make.append((sequence.id, state, embedding, walk))
        if hopeless:  # or a search would say that a reindex mends it
            self._store.drop_embeddings(self._encoder.digest, hopeless)
        if to_make:
            self._make(to_make)

    def _look(self, stored: EmbeddingRow | None) -> tuple[_State, Embedding | None]:
        if stored is None:
            return _State.MISSING, None
        try:
            embedding = embedding_of(stored, self._sealing)
        except DamagedEmbedding:
            return _State.BROKEN, None
        if embedding.shape != (self._encoder.card.parts, self._encoder.card.channels):
            return _State.BROKEN, None
        known = stored.key_id is not None or stored.checksum is not None
        return (_State.SOUND if known else _State.UNKNOWN), embedding

    def _make(self, walks: Sequence[tuple[str, _State, Embedding | None, Silhouettes]]) -> None:
        made = self._encoder.encode([walk for _, _, _, walk in walks])
        new = {item[0]: embedding for item, embedding in zip(walks, made, strict=True)}
        missing = [key for key, state, _, _ in walks if state is _State.MISSING]
        # Who else embeds them meanwhile makes the same.
        self._store.add_embeddings(self._encoder.digest, ((key, new[key]) for key in missing))
        others = [item for item in walks if item[1] is not _State.MISSING]
        if others:
            self._store.replace_embeddings(
                self._encoder.digest, ((key, new[key]) for key, _, _, _ in others)
            )
        as_before = sum(old is not None and _same(old, new[key]) for key, _, old, _ in others)
        self.checked += as_before
        self.repaired += len(others) - as_before
        self.embedded += len(walks) - as_before


def _same(one: Embedding, other: Embedding) -> bool:
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    return bool(a @ b >= _SAME * np.linalg.norm(a) * np.linalg.norm(b))


def _done(folder: Path) -> Path:
    return scratch(folder).absolute() / "reindexed.json"

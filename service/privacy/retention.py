"""What is kept no longer than it may be: old sequences of galleries, kept answers, jobs' folders.

A sequence's age counts from its enrolment. `captured_at` in the metadata is what a client claims,
if it claims anything, and would let a sequence be kept for ever by a typing error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.access.keys import keys_that_expire
from service.foundation.errors import NotFound
from service.foundation.settings import Settings
from service.gallery.cache import GalleryCache
from service.gallery.store import GalleryStore
from service.gallery.tables import GalleryRow
from service.jobs.queue import JobQueue
from service.jobs.scratch import remove_old_folders, remove_scratch_of_ended
from service.privacy.erasing import erase_older
from service.serving.registry import remove_unfinished
from service.storage.database import empty_log, now, rewrite
from service.storage.kept_answers import forget_expired
from service.storage.reserve import Reserve
from service.storage.writers import Writers

_ARRIVED: Final = timedelta(days=1)  # by when an upload is whole, or its process died
_AT_ONCE: Final = 200  # sequences in one transaction, so that enrolments get their turn
_ANSWERS_AT_ONCE: Final = 500
_TURN_S: Final = 0.1  # as long as whoever waits for SQLite's lock sleeps at most between two looks
_SOON: Final = timedelta(days=7)  # before a key expires, somebody has to hear of it
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """How much a sweep has removed."""

    sequences: int = 0
    subjects: int = 0
    job_folders: int = 0
    answers: int = 0


class Retention:
    """Sweeps now and then. Any number of processes may: what one has removed, no other finds."""

    def __init__(
        self,
        settings: Settings,
        store: GalleryStore,
        writers: Writers,
        galleries: GalleryCache,
        reserve: Reserve,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._settings = settings
        self._store = store
        self._writers = writers
        self._galleries = galleries
        self._reserve = reserve
        self._clock = clock
        self._announced: set[str] = set()  # keys

    async def run(self) -> None:
        """Sweep at once and then after every interval, until cancelled."""
        while True:
            try:
                swept = await self.sweep()
                await asyncio.to_thread(self._announce_keys)
            except (OSError, SQLAlchemyError):  # a full disk, say: the next one may succeed
                _log.exception("the sweep was cut short")
            else:
                if swept != Swept():
                    _log.info(
                        "swept",
                        extra={
                            "sequences": swept.sequences,
                            "subjects": swept.subjects,
                            "job_folders": swept.job_folders,
                            "answers": swept.answers,
                        },
                    )
            await asyncio.sleep(self._settings.sweep_seconds)

    async def sweep(self) -> Swept:
        """Remove everything that is too old now."""
        at = self._clock()
        sequences = subjects = 0
        for gallery_id, name in await asyncio.to_thread(self._limited):
            before = sequences
            while True:
                erased, vanished = await self._writers.run(
                    self._reserve.spend,
                    partial(erase_older, self._store.engine, gallery_id, at, _AT_ONCE),
                )
                sequences += erased
                subjects += vanished
                if erased < _AT_ONCE:
                    break
            if sequences > before:
                await asyncio.to_thread(self._follow, gallery_id, name)
        answers = await self._forget_answers(at)
        await self._writers.run(rewrite, self._store.engine)
        # Always: an erasure's process may have died before it did, or had to leave it.
        await self._writers.run(empty_log, self._store.engine)
        folders = await asyncio.to_thread(self._tidy_jobs, at)
        return Swept(sequences, subjects, folders, answers)

    async def _forget_answers(self, at: datetime) -> int:
        forgotten = 0
        forget = partial(forget_expired, self._store.engine, at, _ANSWERS_AT_ONCE)
        while True:
            some = await self._writers.run(self._reserve.spend, forget)
            forgotten += some
            if some < _ANSWERS_AT_ONCE:
                return forgotten
            await asyncio.sleep(_TURN_S)

    def _announce_keys(self) -> None:
        """Warn once of each key that expires soon: whoever uses it may notice only when it has."""
        for key in keys_that_expire(self._store.engine, _SOON, self._clock()):
            if key.key_id not in self._announced and key.expires_at is not None:
                self._announced.add(key.key_id)
                when = key.expires_at.isoformat(timespec="seconds")
                _log.warning(
                    "an API key expires soon", extra={"key_id": key.key_id, "expires_at": when}
                )

    def _limited(self) -> list[tuple[str, str]]:
        query = select(GalleryRow.id, GalleryRow.name).where(GalleryRow.max_age_days.is_not(None))
        with Session(self._store.engine) as session:
            return [(row.id, row.name) for row in session.execute(query)]

    def _follow(self, gallery_id: str, name: str) -> None:
        """Let go of the embeddings in memory; other processes do at their next search."""
        held = self._galleries.held(gallery_id)
        if not held:
            return
        try:
            _, newest, _ = self._store.head(name)
            for index in held.values():  # one for each model that it is searched with
                index.follow(newest)
        except NotFound:  # erased meanwhile
            self._galleries.drop(gallery_id)

    def _tidy_jobs(self, at: datetime) -> int:
        queue = JobQueue.of(self._store.engine, self._settings)
        folders = self._settings.jobs_dir
        remove_scratch_of_ended(queue, folders)
        remove_unfinished(self._settings.models_dir, at - _ARRIVED)
        self._reserve.fill()  # if an erasure has used it and could not
        oldest = at - timedelta(days=self._settings.job_retention_days)
        return remove_old_folders(queue, folders, oldest)

"""Remove what is too old: sequences of galleries, kept answers, jobs' folders.

A sequence's age counts from its enrolment. `captured_at` in the metadata is only a client's claim,
with which a typing error could keep a sequence for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.access.keys import keys_that_expire
from service.foundation.errors import NotFound, Unavailable
from service.foundation.settings import Settings
from service.gallery.cache import GalleryCache
from service.gallery.shredding import clear
from service.gallery.shredding import sweep as sweep_keys
from service.gallery.snapshots import Snapshots
from service.gallery.store import GalleryStore
from service.gallery.tables import GalleryRow
from service.jobs.job_files import JobFiles
from service.jobs.queue import JobQueue
from service.jobs.scratch import remove_old_folders, remove_scratch_of_ended
from service.privacy.erasure_transactions import erase_older
from service.privacy.listings import forget_old
from service.serving.model_files import open_model_files
from service.storage.database import now
from service.storage.failures import is_away
from service.storage.kept_answers import delete_expired_answers
from service.storage.objects import StoreUnavailable
from service.storage.reserve import Reserve
from service.storage.vacuum import clear_traces, vacuum
from service.storage.writers import Writers

if TYPE_CHECKING:  # what comes with an extra
    from service.gallery.index_collections import IndexCollections

_ARRIVED: Final = timedelta(days=1)  # by when an upload is whole, or its process died
_SEQUENCES_AT_ONCE: Final = 200  # in one transaction, so that enrolments get their turn
_ANSWERS_AT_ONCE: Final = 500
_PAUSE_S: Final = 0.1  # who waits for SQLite's lock sleeps at most so long between two attempts
_LISTINGS_S: Final = 30.0  # between two looks for walks in footage whose time is over
_WARNING: Final = timedelta(days=7)  # of a key that expires
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """How much a sweep has removed."""

    sequences: int = 0
    subjects: int = 0
    job_folders: int = 0
    answers: int = 0


class Retention:
    """Sweeps at intervals. Any number of processes may: what one has removed, no other finds."""

    def __init__(
        self,
        settings: Settings,
        store: GalleryStore,
        writers: Writers,
        galleries: GalleryCache,
        reserve: Reserve,
        collections: IndexCollections | None = None,
        clock: Callable[[], datetime] = now,
        sequences_at_once: int = _SEQUENCES_AT_ONCE,
        answers_at_once: int = _ANSWERS_AT_ONCE,
    ) -> None:
        self._settings = settings
        self._store = store
        self._writers = writers
        self._galleries = galleries
        self._snapshots = Snapshots(store.engine, settings.indexes_dir)
        self._reserve = reserve
        self._collections = collections
        self._clock = clock
        self._sequences_at_once = sequences_at_once
        self._answers_at_once = answers_at_once
        self._announced: set[str] = set()  # keys

    async def run(self) -> None:
        """Sweep at once and then after every interval, until cancelled."""
        while True:
            try:
                swept = await self.sweep()
                await asyncio.to_thread(self._announce_keys)
            except (OSError, SQLAlchemyError, StoreUnavailable) as error:  # the next may succeed
                if not is_away(error):
                    _log.exception("the sweep was cut short")
            else:
                if swept != Swept():
                    _log.info("swept", extra=asdict(swept))
            await asyncio.sleep(self._settings.sweep_seconds)

    async def run_listings(self) -> None:
        """Forget at short intervals what jobs found in footage: it is kept for minutes."""
        while True:
            try:
                await self.forget_listings()
                files = open_model_files(self._settings, self._store.engine)
                await asyncio.to_thread(files.tidy_cache)  # of what another host has removed
            except (OSError, SQLAlchemyError) as error:
                if not is_away(error):
                    _log.exception("walks in footage could not be forgotten, or copies of models")
            await asyncio.sleep(min(_LISTINGS_S, self._settings.sweep_seconds))

    async def forget_listings(self) -> None:
        """Forget every listing, with its walks, whose time is over."""
        forget = partial(forget_old, self._store.engine, self._clock())
        if await self._writers.run(self._reserve.spend, forget):
            await self._writers.run(clear, self._store.engine)

    async def sweep(self) -> Swept:
        """Remove everything that is too old now."""
        at = self._clock()
        sequences = subjects = 0
        for gallery_id, name in await asyncio.to_thread(self._limited):
            erased, vanished = await self._erase_old(gallery_id, at)
            sequences += erased
            subjects += vanished
            if erased:
                await asyncio.to_thread(self._follow, gallery_id, name)
        await asyncio.to_thread(self._snapshots.sweep)
        await asyncio.to_thread(self._tidy_collections)
        answers = await self._delete_answers(at)
        await self._writers.run(sweep_keys, self._store.engine, at)
        await self._writers.run(vacuum, self._store.engine)
        # Always: an erasure's process may have died before it did, or had to leave it.
        await self._writers.run(clear_traces, self._store.engine)
        folders = await asyncio.to_thread(self._tidy_jobs, at)
        return Swept(sequences, subjects, folders, answers)

    async def _erase_old(self, gallery_id: str, at: datetime) -> tuple[int, int]:
        sequences = subjects = 0
        most = self._sequences_at_once
        erase = partial(erase_older, self._store.engine, gallery_id, at, most)
        while True:
            erased, vanished = await self._writers.run(self._reserve.spend, erase)
            sequences += erased
            subjects += vanished
            if erased < most:
                return sequences, subjects

    async def _delete_answers(self, at: datetime) -> int:
        deleted = 0
        most = self._answers_at_once
        delete = partial(delete_expired_answers, self._store.engine, at, most)
        while True:
            some = await self._writers.run(self._reserve.spend, delete)
            deleted += some
            if some < most:
                return deleted
            await asyncio.sleep(_PAUSE_S)

    def _announce_keys(self) -> None:
        """Warn once of each key that expires soon: its user may notice only when it has."""
        for key in keys_that_expire(self._store.engine, _WARNING, self._clock()):
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
        """Drop the embeddings from memory; other processes do so at their next search."""
        held = self._galleries.held(gallery_id)
        if not held:
            return
        try:
            newest = self._store.head(name).revision
            for index in held.values():  # one for each model that it is searched with
                index.follow(newest)
        except NotFound:  # erased meanwhile
            self._galleries.drop(gallery_id)

    def _tidy_collections(self) -> None:
        if self._collections is None:
            return
        try:
            self._collections.tidy()
        except Unavailable as error:  # the rest must be swept; the next sweep does it
            _log.error("the vector database could not be tidied: %s", error)

    def _tidy_jobs(self, at: datetime) -> int:
        queue = JobQueue.of(self._store.engine, self._settings)
        folders = self._settings.jobs_dir
        remove_scratch_of_ended(queue, folders)
        JobFiles.of(self._settings).sweep(queue)
        open_model_files(self._settings, self._store.engine).tidy(at - _ARRIVED)
        self._reserve.fill()  # if an erasure has used it and could not
        oldest = at - timedelta(days=self._settings.job_retention_days)
        return remove_old_folders(queue, folders, oldest)

"""Erase a subject, a sequence or a gallery: from the database, from memory, from jobs' folders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from service.errors import NotFound
from service.gallery import erasing
from service.gallery.cache import GalleryCache
from service.gallery.records import ErasureReceipt
from service.gallery.store import GalleryStore
from service.jobs.leftovers import remove_leftovers, remove_walks
from service.jobs.queue import JobQueue
from service.reserve import Reserve
from service.settings import Settings
from service.training_record import TrainingRecord
from service.writers import Writers

DEFAULT_GALLERY = "default"


class Erasure:
    """The use cases behind the DELETE calls; each raises `NotFound` for what is not there."""

    def __init__(
        self,
        store: GalleryStore,
        writers: Writers,
        galleries: GalleryCache,
        record: TrainingRecord,
        reserve: Reserve,
        settings: Settings,
    ) -> None:
        self._store = store
        self._writers = writers
        self._galleries = galleries
        self._record = record
        self._reserve = reserve
        self._jobs = JobQueue.of(store.engine, settings)
        self._jobs_dir = settings.jobs_dir

    async def subject(self, gallery: str, subject_id: str) -> ErasureReceipt:
        """Erase a subject with every sequence, and the embeddings held in this process."""
        receipt = await self._erase(erasing.erase_subject, gallery, subject_id)
        await asyncio.to_thread(self._forget, receipt)
        return receipt

    async def sequence(self, sequence_id: str) -> ErasureReceipt:
        """Erase a sequence, and its subject when it was the last one."""
        receipt = await self._erase(erasing.erase_sequence, sequence_id)
        await asyncio.to_thread(self._forget, receipt)
        return receipt

    async def gallery(self, gallery: str) -> ErasureReceipt:
        """Erase a gallery with everything in it; an empty `default` remains."""
        gallery_id, _, _ = await asyncio.to_thread(self._store.head, gallery)
        receipt = await self._erase(erasing.erase_gallery, gallery, keep=gallery == DEFAULT_GALLERY)
        self._galleries.drop(gallery_id)
        await asyncio.to_thread(self._clear_jobs, receipt)
        return receipt

    async def _erase(
        self, erase: Callable[..., ErasureReceipt], *what: str, **how: bool
    ) -> ErasureReceipt:
        work = partial(erase, self._store.engine, *what, models_of=self._record.models, **how)
        return await self._writers.run(self._reserve.spend, work)

    def _clear_jobs(self, receipt: ErasureReceipt) -> None:
        remove_walks(self._jobs_dir, receipt.jobs)
        remove_leftovers(self._jobs, self._jobs_dir)

    def _forget(self, receipt: ErasureReceipt) -> None:
        # Other processes follow at their next search; this one need not keep it until then.
        try:
            gallery_id, newest, _ = self._store.head(receipt.gallery)
        except NotFound:  # the whole gallery went meanwhile
            pass
        else:
            for held in self._galleries.held(gallery_id).values():
                held.follow(newest)
        self._clear_jobs(receipt)  # last: the disk may refuse, and memory does not

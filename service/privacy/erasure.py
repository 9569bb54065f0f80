"""Erase a subject, a sequence or a gallery: from the database, from memory, from files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from service.foundation.errors import NotFound
from service.foundation.settings import Settings
from service.gallery.cache import GalleryCache
from service.gallery.records import ErasureReceipt
from service.gallery.snapshots import Snapshots
from service.gallery.store import GalleryStore
from service.jobs.job_files import JobFiles
from service.jobs.queue import JobQueue
from service.jobs.scratch import remove_scratch, remove_scratch_of_ended
from service.privacy import erasure_transactions as transactions
from service.serving.active_models import ActiveModels
from service.serving.lineage import TrainingRecord
from service.storage.objects import StoreUnavailable
from service.storage.reserve import Reserve
from service.storage.writers import Writers

if TYPE_CHECKING:  # what comes with an extra
    from service.gallery.index_collections import IndexCollections

DEFAULT_GALLERY = "default"
_VECTORS_S = 5.0  # that an erasure waits for a process that writes to the vector database
_log = logging.getLogger(__name__)


class Erasure:
    """The use cases behind the DELETE calls; each raises `NotFound` if nothing is there."""

    def __init__(
        self,
        store: GalleryStore,
        writers: Writers,
        galleries: GalleryCache,
        models: ActiveModels,
        record: TrainingRecord,
        reserve: Reserve,
        settings: Settings,
        collections: IndexCollections | None = None,
    ) -> None:
        self._store = store
        self._writers = writers
        self._galleries = galleries
        self._models = models
        self._record = record
        self._reserve = reserve
        self._jobs = JobQueue.of(store.engine, settings)
        self._jobs_dir = settings.jobs_dir
        self._files = JobFiles.of(settings)
        self._snapshots = Snapshots(store.engine, settings.indexes_dir)
        self._collections = collections

    async def subject(self, gallery: str, subject_id: str) -> ErasureReceipt:
        """Erase a subject with every sequence, and the embeddings held in this process."""
        return await self._erase_some(transactions.erase_subject, gallery, subject_id)

    async def sequence(self, sequence_id: str) -> ErasureReceipt:
        """Erase a sequence, and its subject when it was the last one."""
        return await self._erase_some(transactions.erase_sequence, sequence_id)

    async def gallery(self, gallery: str) -> ErasureReceipt:
        """Erase a gallery with everything in it; an empty `default` remains."""
        gallery_id = (await asyncio.to_thread(self._store.head, gallery)).gallery_id
        receipt = await self._erase(
            transactions.erase_gallery, gallery, keep=gallery == DEFAULT_GALLERY
        )
        self._galleries.drop(gallery_id)
        await self._clear(receipt, self._clear_snapshots, self._clear_jobs, self._clear_files)
        return await self._clear_vectors(receipt, gallery_id)

    async def _erase_some(self, erase: Callable[..., ErasureReceipt], *what: str) -> ErasureReceipt:
        receipt = await self._erase(erase, *what)
        await self._clear(
            receipt, self._clear_snapshots, self._forget, self._clear_jobs, self._clear_files
        )
        if receipt.scene_dropped:  # out of memory as well
            await self._models.follow_now(receipt.gallery)
        return await self._clear_vectors(receipt, await asyncio.to_thread(self._id_of, receipt))

    async def _erase(
        self, erase: Callable[..., ErasureReceipt], *what: str, **how: bool
    ) -> ErasureReceipt:
        work = partial(erase, self._store.engine, *what, models_of=self._record.models, **how)
        return await self._writers.run(self._reserve.spend, work)

    async def _clear(
        self, receipt: ErasureReceipt, *pieces: Callable[[ErasureReceipt], None]
    ) -> None:
        """Clear what is left outside of the database.

        The erasure is committed: a disk or a database that fails now must not prevent that it is
        recorded and answered. The next search, the jobs' ends and the sweeps clear the rest.
        """
        for piece in pieces:
            try:
                await asyncio.to_thread(piece, receipt)
            except (OSError, SQLAlchemyError, StoreUnavailable):
                _log.exception("after an erasure something is left for a while")

    async def _clear_vectors(
        self, receipt: ErasureReceipt, gallery_id: str | None
    ) -> ErasureReceipt:
        """Delete from the vector database, and say what it still keeps."""
        if self._collections is None or gallery_id is None:
            return receipt
        work = partial(self._collections.erase, gallery_id, within_s=_VECTORS_S)
        try:
            left = await asyncio.to_thread(work)
        except SQLAlchemyError:
            _log.exception("after an erasure vectors are left for a while")
            left = "pending"
        return replace(receipt, vectors=left)

    def _clear_snapshots(self, _receipt: ErasureReceipt) -> None:
        self._snapshots.sweep()

    def _clear_jobs(self, receipt: ErasureReceipt) -> None:
        remove_scratch(self._jobs_dir, receipt.jobs)
        remove_scratch_of_ended(self._jobs, self._jobs_dir)

    def _clear_files(self, receipt: ErasureReceipt) -> None:
        self._files.delete(receipt.jobs)

    def _forget(self, receipt: ErasureReceipt) -> None:
        # Other processes drop them at their next search; this one need not wait for it.
        gallery_id = self._id_of(receipt)
        if gallery_id is None:
            return
        for held in self._galleries.held(gallery_id).values():
            held.forget(receipt.sequence_ids)

    def _id_of(self, receipt: ErasureReceipt) -> str | None:
        try:
            return self._store.head(receipt.gallery).gallery_id
        except NotFound:  # the whole gallery went meanwhile
            return None

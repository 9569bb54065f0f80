"""Erase a subject, a sequence or a gallery, from the database and from memory."""

from __future__ import annotations

import asyncio

from service.errors import NotFound
from service.gallery import erasing
from service.gallery.cache import GalleryCache
from service.gallery.records import ErasureReceipt
from service.gallery.store import GalleryStore
from service.writers import Writers

DEFAULT_GALLERY = "default"


class Erasure:
    """The use cases behind the DELETE calls; each raises `NotFound` for what is not there."""

    def __init__(self, store: GalleryStore, writers: Writers, galleries: GalleryCache) -> None:
        self._store = store
        self._writers = writers
        self._galleries = galleries

    async def subject(self, gallery: str, subject_id: str) -> ErasureReceipt:
        """Erase a subject with every sequence, and the embeddings held in this process."""
        receipt = await self._writers.run(
            erasing.erase_subject, self._store.engine, gallery, subject_id
        )
        await asyncio.to_thread(self._forget, gallery)
        return receipt

    async def sequence(self, sequence_id: str) -> ErasureReceipt:
        """Erase a sequence, and its subject when it was the last one."""
        receipt = await self._writers.run(erasing.erase_sequence, self._store.engine, sequence_id)
        await asyncio.to_thread(self._forget, receipt.gallery)
        return receipt

    async def gallery(self, gallery: str) -> ErasureReceipt:
        """Erase a gallery with everything in it; an empty `default` remains."""
        gallery_id, _, _ = await asyncio.to_thread(self._store.head, gallery)
        receipt = await self._writers.run(
            erasing.erase_gallery, self._store.engine, gallery, keep=gallery == DEFAULT_GALLERY
        )
        self._galleries.drop(gallery_id)
        return receipt

    def _forget(self, gallery: str) -> None:
        # Other processes follow at their next search; this one need not keep it until then.
        try:
            gallery_id, newest, _ = self._store.head(gallery)
        except NotFound:  # the whole gallery went meanwhile
            return
        for held in self._galleries.held(gallery_id).values():
            held.follow(newest)

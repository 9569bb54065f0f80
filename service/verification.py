"""Verify (1:1): does this subject walk like this?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter

from service.database import new_id
from service.decision import Threshold, threshold_for
from service.gallery.cache import GalleryCache
from service.gallery.followed import Candidate
from service.gallery.listing import missing_subject, require_subject
from service.gallery.records import Embedding
from service.gallery.store import GalleryStore
from service.intake import EmbeddedWalk, Intake, Walk
from service.metrics import Metrics
from service.model_in_use import ModelInUse


@dataclass(frozen=True, slots=True)
class Verified:
    """The answer to a verification, with the subject's most similar sequence."""

    search_id: str
    gallery: str
    verified: bool
    threshold: Threshold
    closest: Candidate
    probe: EmbeddedWalk
    model: ModelInUse
    seconds: float


class Verification:
    """The use case behind POST /verify."""

    def __init__(
        self,
        store: GalleryStore,
        galleries: GalleryCache,
        intake: Intake,
        model: ModelInUse,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._galleries = galleries
        self._intake = intake
        self._model = model
        self._metrics = metrics

    async def verify(
        self, gallery: str, subject_id: str, walk: Walk, *, threshold: float | None
    ) -> Verified:
        """Compare the walk with every sequence of one subject, and decide by the best.

        Raises `NotFound` for a missing gallery or subject, `Invalid` when there is no threshold to
        decide by, and whatever `Intake.embed` raises.
        """
        started = perf_counter()
        await asyncio.to_thread(self._store.head, gallery)  # a missing gallery is said first
        await asyncio.to_thread(require_subject, self._store.engine, gallery, subject_id)
        chosen = await asyncio.to_thread(
            threshold_for, self._store, gallery, threshold, self._model
        )
        (probe,) = await self._intake.embed([walk])
        closest = await asyncio.to_thread(self._compare, gallery, subject_id, probe.embedding)
        if closest is None:
            raise missing_subject(gallery, subject_id)
        return Verified(
            search_id=new_id(),
            gallery=gallery,
            verified=closest.similarity >= chosen.value,
            threshold=chosen,
            closest=closest,
            probe=probe,
            model=self._model,
            seconds=perf_counter() - started,
        )

    def _compare(self, gallery: str, subject_id: str, probe: Embedding) -> Candidate | None:
        with self._metrics.search_seconds.time():
            gallery_id, newest, _ = self._store.head(gallery)
            return self._galleries.get(gallery_id).compare(newest, probe, subject_id)

"""Verify (1:1): does this subject walk like this?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter

from service.foundation.metrics import Metrics
from service.gallery.listing import missing_subject, require_subject
from service.gallery.live_index import Candidate
from service.gallery.records import Embedding
from service.gallery.store import GalleryStore
from service.recognition.intake import EmbeddedWalk, Intake, Walk
from service.serving.active_models import ActiveModels
from service.serving.model_pool import LoadedModel
from service.serving.thresholds import ModelInUse, Threshold, threshold_for
from service.storage.database import new_id


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
        models: ActiveModels,
        intake: Intake,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._models = models
        self._intake = intake
        self._metrics = metrics

    async def verify(
        self, gallery: str, subject_id: str, walk: Walk, *, threshold: float | None
    ) -> Verified:
        """Compare the walk with every sequence of one subject, and decide by the best.

        Raises `NotFound` for a missing gallery or subject, `Invalid` when there is no threshold to
        decide by, and whatever `ActiveModels.using` and `Intake.embed` raise.
        """
        started = perf_counter()
        async with self._models.using(gallery) as loaded:  # a missing gallery is said first
            await asyncio.to_thread(require_subject, self._store.engine, gallery, subject_id)
            (probe,) = await self._intake.embed([walk], loaded.batcher)
            chosen, closest = await asyncio.to_thread(
                self._compare, gallery, loaded, subject_id, probe.embedding, threshold
            )
        return Verified(
            search_id=new_id(),
            gallery=gallery,
            verified=closest.similarity >= chosen.value,
            threshold=chosen,
            closest=closest,
            probe=probe,
            model=loaded.model,
            seconds=perf_counter() - started,
        )

    def _compare(
        self,
        gallery: str,
        loaded: LoadedModel,
        subject_id: str,
        probe: Embedding,
        threshold: float | None,
    ) -> tuple[Threshold, Candidate]:
        with self._metrics.search_seconds.time():
            gallery_id, newest, point = self._store.head(gallery, loaded.digest)
            followed = self._models.index(gallery_id, loaded)
            closest = followed.compare(newest, probe, subject_id)
            if closest is None:  # erased while the walk was embedded
                raise missing_subject(gallery, subject_id)
            return threshold_for(threshold, point, followed.subjects, loaded.model), closest

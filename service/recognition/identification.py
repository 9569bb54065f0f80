"""Identify (1:N): who in the gallery walks like this, if anybody."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter

from service.foundation.metrics import Metrics
from service.gallery.live_index import Candidate, Filter
from service.gallery.records import Embedding
from service.gallery.store import GalleryStore
from service.recognition.intake import EmbeddedWalk, Intake, Walk
from service.serving.active_models import ActiveModels
from service.serving.model_pool import LoadedModel
from service.serving.thresholds import ModelInUse, Threshold, threshold_for
from service.storage.database import new_id


@dataclass(frozen=True, slots=True)
class RankedCandidate:
    """A candidate and its lead: its similarity less that of the best other subject."""

    rank: int
    candidate: Candidate
    margin: float | None


@dataclass(frozen=True, slots=True)
class Identified:
    """The answer to an identification."""

    search_id: str
    gallery: str
    match: bool
    threshold: Threshold
    candidates: tuple[RankedCandidate, ...]
    probe: EmbeddedWalk
    model: ModelInUse
    seconds: float


class Identification:
    """The use case behind POST /identify."""

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

    async def identify(
        self,
        gallery: str,
        walk: Walk,
        *,
        top_k: int,
        threshold: float | None,
        where: Filter | None,
        explain: bool,
    ) -> Identified:
        """Rank the subjects most similar to the walk, and decide.

        Raises `NotFound` for a missing gallery, `Invalid` when there is no threshold to decide by,
        and whatever `ActiveModels.using` and `Intake.embed` raise.
        """
        started = perf_counter()
        async with self._models.using(gallery) as loaded:
            (probe,) = await self._intake.embed([walk], loaded.batcher)
            # One subject more than asked for: a margin needs the best other one.
            subjects = max(top_k, 1) + 1
            chosen, best = await asyncio.to_thread(
                self._search, gallery, loaded, probe.embedding, subjects, threshold, where, explain
            )
        match = bool(best) and best[0].similarity >= chosen.value
        self._metrics.decisions.labels("match" if match else "no_match").inc()
        return Identified(
            search_id=new_id(),
            gallery=gallery,
            match=match,
            threshold=chosen,
            candidates=rank(best)[:top_k],
            probe=probe,
            model=loaded.model,
            seconds=perf_counter() - started,
        )

    def _search(
        self,
        gallery: str,
        loaded: LoadedModel,
        probe: Embedding,
        subjects: int,
        threshold: float | None,
        where: Filter | None,
        explain: bool,
    ) -> tuple[Threshold, list[Candidate]]:
        with self._metrics.search_seconds.time():
            # One row says what is searched and what is decided by.
            gallery_id, newest, point = self._store.head(gallery, loaded.digest)
            followed = self._models.index(gallery_id, loaded)
            best = followed.search(newest, probe, subjects, where=where, explain=explain)
            return threshold_for(threshold, point, followed.subjects, loaded.model), best


def rank(best: list[Candidate]) -> tuple[RankedCandidate, ...]:
    """Number candidates (best first) and give each its margin; None where there is no other."""
    ranked = []
    for position, candidate in enumerate(best):
        other = best[0] if position else (best[1] if len(best) > 1 else None)
        margin = None if other is None else candidate.similarity - other.similarity
        ranked.append(RankedCandidate(position + 1, candidate, margin))
    return tuple(ranked)

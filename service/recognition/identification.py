"""Identify (1:N): who in the gallery walks like this? Verify (1:1): does this subject?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np

from service.foundation.metrics import Metrics
from service.gallery.listing import missing_subject, require_subject
from service.gallery.ranking import Candidate, SearchedGallery
from service.gallery.records import Walk
from service.gallery.roster import Filter
from service.gallery.store import GalleryStore
from service.recognition.intake import Intake, Upload
from service.serving.active_models import ActiveModels
from service.serving.batching import FrameBatcher
from service.serving.model_pool import LoadedModel
from service.serving.thresholds import ModelInUse, Threshold, threshold_for
from service.storage.database import new_id

Found = TypeVar("Found")


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
    probes: tuple[Walk, ...]
    model: ModelInUse
    seconds: float


@dataclass(frozen=True, slots=True)
class Verified:
    """The answer to a verification, with the subject's most similar sequence."""

    search_id: str
    gallery: str
    verified: bool
    threshold: Threshold
    closest: Candidate
    probes: tuple[Walk, ...]
    model: ModelInUse
    seconds: float


Embed = Callable[[FrameBatcher], Awaitable[list[Walk]]]
"""Embeds a person's walks by the model of a batcher."""


class Search:
    """Searches galleries for a person's walks."""

    def __init__(self, store: GalleryStore, models: ActiveModels, metrics: Metrics) -> None:
        self._store = store
        self.models = models
        self._metrics = metrics

    async def identify(
        self,
        gallery: str,
        embed: Embed,
        *,
        top_k: int,
        threshold: float | None = None,
        where: Filter | None = None,
        explain: bool = False,
        view: str | None = None,
    ) -> Identified:
        """See `Identification.identify`; `embed` makes the walks' embeddings."""
        started = perf_counter()
        async with self.models.using(gallery) as loaded:
            walks = await embed(loaded.batcher)
            probes = np.stack([walk.embedding for walk in walks])

            def search(index: SearchedGallery, revision: int) -> list[Candidate]:
                # One subject more than asked for: a margin needs the best other one.
                return index.search(
                    revision, probes, max(top_k, 1) + 1, where=where, view=view, explain=explain
                )

            chosen, best = await asyncio.to_thread(self.decide, gallery, loaded, threshold, search)
        match = bool(best) and best[0].similarity >= chosen.value
        self._metrics.decisions.labels("match" if match else "no_match").inc()
        return Identified(
            search_id=new_id(),
            gallery=gallery,
            match=match,
            threshold=chosen,
            candidates=rank(best)[:top_k],
            probes=tuple(walks),
            model=loaded.model,
            seconds=perf_counter() - started,
        )

    def decide(
        self,
        gallery: str,
        loaded: LoadedModel,
        threshold: float | None,
        search: Callable[[SearchedGallery, int], Found],
    ) -> tuple[Threshold, Found]:
        """What a search of a gallery finds, and the threshold that decides it."""
        with self._metrics.search_seconds.time():
            # One row says what is searched and what is decided by.
            head = self._store.head(gallery, loaded.digest)
            index = self.models.index(head.gallery_id, loaded)
            found = search(index, head.revision)
            return threshold_for(threshold, head, index, loaded.model), found


class Identification:
    """The use cases behind POST /identify and POST /verify."""

    def __init__(
        self, store: GalleryStore, models: ActiveModels, intake: Intake, metrics: Metrics
    ) -> None:
        self._store = store
        self._models = models
        self._intake = intake
        self._search = Search(store, models, metrics)

    async def identify(
        self,
        gallery: str,
        uploads: Sequence[Upload],
        *,
        top_k: int,
        threshold: float | None,
        where: Filter | None,
        explain: bool,
        view: str | None = None,
    ) -> Identified:
        """Rank the subjects most similar to a person's walks, filmed in this view, and decide.

        Raises `NotFound` for a missing gallery, `Invalid` when there is no threshold to decide by,
        and whatever `ActiveModels.using` and `Intake.embed` raise.
        """
        return await self._search.identify(
            gallery,
            partial(self._intake.embed, uploads),
            top_k=top_k,
            threshold=threshold,
            where=where,
            explain=explain,
            view=view,
        )

    async def verify(
        self,
        gallery: str,
        subject_id: str,
        uploads: Sequence[Upload],
        *,
        threshold: float | None,
        view: str | None = None,
    ) -> Verified:
        """Compare a person's walks with every sequence of one subject, and decide by the best.

        Raises `NotFound` for a missing gallery or subject, `Invalid` when there is no threshold to
        decide by, and whatever `ActiveModels.using` and `Intake.embed` raise.
        """
        started = perf_counter()
        async with self._models.using(gallery) as loaded:  # a missing gallery is said first
            await asyncio.to_thread(require_subject, self._store.engine, gallery, subject_id)
            walks = await self._intake.embed(uploads, loaded.batcher)
            probes = np.stack([walk.embedding for walk in walks])

            def compare(index: SearchedGallery, revision: int) -> Candidate:
                closest = index.compare(revision, probes, subject_id, view=view)
                if closest is None:  # erased while the walk was embedded
                    raise missing_subject(gallery, subject_id)
                return closest

            chosen, closest = await asyncio.to_thread(
                self._search.decide, gallery, loaded, threshold, compare
            )
        return Verified(
            search_id=new_id(),
            gallery=gallery,
            verified=closest.similarity >= chosen.value,
            threshold=chosen,
            closest=closest,
            probes=tuple(walks),
            model=loaded.model,
            seconds=perf_counter() - started,
        )


def rank(best: list[Candidate]) -> tuple[RankedCandidate, ...]:
    """Number candidates (best first) and give each its margin; None when there is no other."""
    ranked = []
    for position, candidate in enumerate(best):
        other = best[0] if position else (best[1] if len(best) > 1 else None)
        margin = None if other is None else candidate.similarity - other.similarity
        ranked.append(RankedCandidate(position + 1, candidate, margin))
    return tuple(ranked)

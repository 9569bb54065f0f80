"""Identify (1:N): who in the gallery walks like this? Verify (1:1): does this subject?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np

from service.foundation.metrics import Metrics
from service.foundation.tracing import span
from service.gallery.listing import missing_subject, require_subject
from service.gallery.ranking import Candidate, GallerySearch
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
    """A candidate and its lead: its similarity less that of the gallery's best other subject."""

    rank: int
    candidate: Candidate
    margin: float | None
    gallery: str


@dataclass(frozen=True, slots=True)
class Searched:
    """A gallery that was searched, the threshold that decides in it, and by which model."""

    gallery: str
    threshold: Threshold
    model: ModelInUse


@dataclass(frozen=True, slots=True)
class Identified:
    """The answer to an identification.

    Attributes:
        search_id: names it.
        searched: the galleries, as they were asked for.
        decided: by which of them: that of the first candidate, or the first if there is none.
        match: whether the first candidate reaches that gallery's threshold.
        candidates: of all galleries, those farthest above their own gallery's threshold first.
        probes: the walks, as the first gallery's model embeds them.
        seconds: that it took.
    """

    search_id: str
    searched: tuple[Searched, ...]
    decided: Searched
    match: bool
    candidates: tuple[RankedCandidate, ...]
    probes: tuple[Walk, ...]
    seconds: float

    @property
    def gallery(self) -> str:
        """The gallery that decides."""
        return self.decided.gallery

    @property
    def threshold(self) -> Threshold:
        """The threshold that decides."""
        return self.decided.threshold

    @property
    def model(self) -> ModelInUse:
        """The model of the gallery that decides."""
        return self.decided.model


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
        others: Sequence[str] = (),
    ) -> Identified:
        """See `Identification.identify`; `embed` makes the walks' embeddings."""
        started = perf_counter()
        galleries = (gallery, *others)
        async with AsyncExitStack() as leases:
            loaded = [await leases.enter_async_context(self.models.using(g)) for g in galleries]
            walks = await embed(loaded[0].batcher)
            probes = {loaded[0].digest: np.stack([walk.embedding for walk in walks])}
            for model in loaded[1:]:
                if model.digest not in probes:  # the walks are decoded once, whatever embeds them
                    embedded = (model.batcher.submit(walk.silhouettes) for walk in walks)
                    probes[model.digest] = np.stack(await asyncio.gather(*embedded))

            def search(name: str, model: LoadedModel) -> tuple[Threshold, list[Candidate]]:
                return self.decide(
                    name,
                    model,
                    threshold,
                    # One subject more than asked for: a margin needs the best other one.
                    lambda index, revision: index.search(
                        revision,
                        probes[model.digest],
                        max(top_k, 1) + 1,
                        where=where,
                        view=view,
                        explain=explain,
                    ),
                )

            found = await asyncio.to_thread(
                lambda: [search(*one) for one in zip(galleries, loaded, strict=True)]
            )
        searched = tuple(
            Searched(name, chosen, model.model)
            for name, model, (chosen, _) in zip(galleries, loaded, found, strict=True)
        )
        each = [rank(best, one) for one, (_, best) in zip(searched, found, strict=True)]
        candidates, decided = merged(each, searched)
        match = bool(candidates) and (candidates[0].candidate.similarity >= decided.threshold.value)
        self._metrics.decisions.labels("match" if match else "no_match").inc()
        return Identified(
            search_id=new_id(),
            searched=searched,
            decided=decided,
            match=match,
            candidates=candidates[:top_k],
            probes=tuple(walks),
            seconds=perf_counter() - started,
        )

    def decide(
        self,
        gallery: str,
        loaded: LoadedModel,
        threshold: float | None,
        search: Callable[[GallerySearch, int], Found],
    ) -> tuple[Threshold, Found]:
        """What a search of a gallery finds, and the threshold that decides it."""
        with self._metrics.search_seconds.time(), span("search"):
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
        others: Sequence[str] = (),
    ) -> Identified:
        """Rank the subjects most similar to a person's walks, filmed in this view, and decide.

        Of several galleries, each with its model, scene transform and threshold, candidates are
        ranked by how far they are above their own gallery's threshold: similarities of one model,
        or transform, say nothing beside those of another.

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
            others=others,
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

            def compare(index: GallerySearch, revision: int) -> Candidate:
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


def rank(best: list[Candidate], searched: Searched) -> list[RankedCandidate]:
    """Number a gallery's candidates (best first) and give each its margin; None without another."""
    ranked = []
    for position, candidate in enumerate(best):
        other = best[0] if position else (best[1] if len(best) > 1 else None)
        margin = None if other is None else candidate.similarity - other.similarity
        ranked.append(RankedCandidate(position + 1, candidate, margin, searched.gallery))
    return ranked


def merged(
    each: Sequence[list[RankedCandidate]], searched: Sequence[Searched]
) -> tuple[tuple[RankedCandidate, ...], Searched]:
    """Candidates of all galleries, farthest above their own threshold first, and who decides.

    Args:
        each: of each gallery, its candidates.
        searched: the galleries; at least one.
    """
    pairs = [(item, one) for items, one in zip(each, searched, strict=True) for item in items]
    # Stable: one gallery's candidates stay in order, and equals in that of the galleries.
    pairs.sort(key=lambda pair: pair[1].threshold.value - pair[0].candidate.similarity)
    candidates = tuple(replace(item, rank=at) for at, (item, _) in enumerate(pairs, start=1))
    return candidates, pairs[0][1] if pairs else searched[0]

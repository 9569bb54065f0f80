"""Lists the walks of a clip, each as it ends: who walks there, and the walk, sealed, for later."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.access.audit.entries import Entry, model_named
from service.gallery.active_model import lock_gallery
from service.gallery.found_walks import FoundWalk, sealed
from service.gallery.roster import Filter
from service.gallery.sealing import sealing_of
from service.gallery.store import GalleryStore
from service.gallery.tables import SequenceRow
from service.jobs.findings import WALK, count_listed
from service.jobs.job import JsonObject
from service.jobs.queue import JobQueue, Lease
from service.recognition.footage_reader import At, Done, Message, Part, Poor
from service.recognition.found_walks import embed_found
from service.recognition.identification import Identified, Search
from service.storage.database import new_id

Progress = Callable[[int, int, float | None], None]
"""Told how many KiB are read, of how many, and the seconds that are left."""


class _Erased(Exception):
    """Somebody who was found was erased meanwhile, or corrected."""


class Looked(NamedTuple):
    """What the process said of the clip, how many walks are listed, and how many were too poor."""

    done: Done
    walks: int
    poor: dict[str, int]


class Position(BaseModel):
    """What another attempt goes on from: a part that is over, and what was said until then."""

    model_config = ConfigDict(frozen=True)

    part: Part
    walks: int
    poor: dict[str, int]


class FootageSearch:
    """The search of one clip for a job, under its lease."""

    def __init__(
        self,
        store: GalleryStore,
        search: Search,
        queue: JobQueue,
        lease: Lease,
        record: Callable[[Entry], None],
        progress: Progress,
        save: Callable[[Position], None],
    ) -> None:
        self._store = store
        self._search = search
        self._queue = queue
        self._lease = lease
        self._record = record
        self._progress = progress
        self._save = save

    async def run(self, messages: Iterator[Message], begin: Position | None) -> Looked:
        """List every walk that is not listed yet; `messages` are those after `begin`.

        The same clip has the same walks, so an attempt after one that was killed skips as many as
        that one has listed since then. Raises `LeaseLost`, `NotFound` when the gallery is gone,
        what a search raises, and what `messages` raises.
        """
        began = time.monotonic()
        with Session(self._store.engine) as session:
            known = count_listed(session, self._lease.job.id)
        walks, poor = (0, Counter[str]()) if begin is None else (begin.walks, Counter(begin.poor))
        at_first: int | None = None
        while True:
            match await asyncio.to_thread(next, messages):
                case At(read=read, of=of):
                    at_first = read if at_first is None else at_first
                    done = read - at_first  # by this attempt
                    left = (time.monotonic() - began) * (of - read) / done if done > 0 else None
                    self._progress(read // 1024, -(-of // 1024), left)
                case Poor(codes=codes):
                    poor[codes[0]] += 1
                case Part() as part:
                    position = Position(part=part, walks=walks, poor=dict(poor))
                    await asyncio.to_thread(self._save, position)
                case Done() as last:
                    return Looked(last, walks, dict(poor))
                case found, silhouettes:
                    walks += 1
                    if walks > known:
                        await self._list(
                            FoundWalk(
                                walk_id=new_id(),
                                job_id=self._lease.job.id,
                                silhouettes=silhouettes,
                                quality=found.quality,
                                origin=found.origin,
                            )
                        )

    async def check(self) -> None:
        """Raise what a search would raise: no gallery, no threshold."""
        request = self._lease.job.request
        async with self._search.models.using(request["gallery"]) as loaded:
            await asyncio.to_thread(
                self._search.decide, request["gallery"], loaded, None, lambda *_: None
            )

    async def _list(self, walk: FoundWalk) -> None:
        request = self._lease.job.request
        while True:
            found = await self._search.identify(
                request["gallery"],
                partial(embed_found, walk),
                top_k=request["top_k"],
                where=_filter(request["filter"]),
            )
            try:
                await asyncio.to_thread(self._keep, walk, found)
                return
            except _Erased:
                continue  # the index follows, and finds them no more

    def _keep(self, walk: FoundWalk, found: Identified) -> None:
        gallery_id = self._store.head(found.gallery).gallery_id
        row = sealed(self._store.engine, walk)
        named = {(one.candidate.sequence_id, one.candidate.subject_id) for one in found.candidates}

        def keep(session: Session) -> None:
            # An erasure is committed before this, or finds what this adds.
            if not lock_gallery(session, gallery_id):
                raise _Erased
            sequences = select(SequenceRow.id, SequenceRow.subject_id)
            rows = session.execute(sequences.where(SequenceRow.id.in_([one for one, _ in named])))
            if named - {(one.id, one.subject_id) for one in rows}:
                raise _Erased
            sealing_of(self._store.engine).require_current(session)
            session.add(row)
            self._record(_entry(walk, found, self._lease.job.request))

        self._queue.note(self._lease, WALK, _listed(walk, found), keep)


def _listed(walk: FoundWalk, found: Identified) -> JsonObject:
    """A walk as a job lists it."""
    return {
        "walk": walk.walk_id,
        "track": walk.origin.track,
        "from_s": walk.origin.from_s,
        "to_s": walk.origin.to_s,
        "frames": len(walk.silhouettes),
        "quality": {"score": walk.quality.score, "issues": list(walk.quality.issues)},
        "decision": "match" if found.match else "no_match",
        "threshold": found.threshold.value,
        "candidates": [
            {
                "rank": one.rank,
                "subject_id": one.candidate.subject_id,
                "similarity": one.candidate.similarity,
                "margin": one.margin,
                "seen_from_this_view": one.candidate.seen_from_this_view,
                "sequence_id": one.candidate.sequence_id,
            }
            for one in found.candidates
        ],
    }


def _entry(walk: FoundWalk, found: Identified, request: JsonObject) -> Entry:
    """The audit record's line on a walk, as on any other identification."""
    first = found.candidates[0].candidate if found.candidates else None
    return Entry(
        "identify",
        found.gallery,
        None if first is None else first.subject_id,
        {
            "search_id": found.search_id,
            "job_id": walk.job_id,
            "walk": walk.walk_id,
            "sequences": 1,
            "decision": "match" if found.match else "no_match",
            "similarity": None if first is None else first.similarity,
            "candidates": len(found.candidates),
            "top_k": request["top_k"],
            "filtered": request["filter"] is not None,
            "threshold": found.threshold.value,
            "threshold_source": found.threshold.source,
            "model": model_named(found.model),
        },
    )


def _filter(kept: dict[str, Any] | None) -> Filter | None:
    """A filter as a search takes it; JSON has lists for tuples."""
    if kept is None:
        return None
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()
    }

"""Walks that a job found in footage, for an enrolment: read while they are kept, and embedded."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine

from service.gallery.found_walks import FoundWalk, missing_walk, read
from service.gallery.records import Walk
from service.jobs.findings import kept_until
from service.jobs.queue import JobQueue
from service.serving.batching import FrameBatcher


def kept_walk(engine: Engine, queue: JobQueue, walk_id: str, at: datetime) -> FoundWalk:
    """A walk that may be enrolled at this moment.

    Raises `NotFound` when it was enrolled, is not kept any more, or never was.
    """
    walk = read(engine, walk_id)
    end = kept_until(queue.get(walk.job_id))
    if end is not None and end <= at:  # the next sweep removes it
        raise missing_walk(walk_id)
    return walk


async def embed_found(found: FoundWalk, batcher: FrameBatcher) -> list[Walk]:
    """The walk, embedded; raises `Unavailable` when too many wait already."""
    embedding = await batcher.submit(found.silhouettes)
    name = f"walk {found.walk_id}"
    return [Walk(name, found.silhouettes, found.quality, embedding, found.origin)]

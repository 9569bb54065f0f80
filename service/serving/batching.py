"""Batching: sequences that arrive together share a forward pass, off the event loop."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Self

import numpy as np
from numpy.typing import NDArray

from service.foundation.errors import Unavailable
from service.foundation.tracing import past
from service.gallery.records import Embedding, Silhouettes

Encode = Callable[[Sequence[Silhouettes]], NDArray[np.float32]]  # [n, p, c]


@dataclass(slots=True)
class _Waiting:
    silhouettes: Silhouettes
    result: asyncio.Future[Embedding]
    since: float = field(default_factory=perf_counter)
    taken: float = 0.0


class FrameBatcher:
    """Groups waiting sequences into batches of at most `max_frames` frames.

    One batch runs at a time, in `executor`; what arrives meanwhile forms the next one. A sequence
    longer than `max_frames` is a batch of its own. The first of a batch waits at most `max_wait`
    seconds for others, and not at all once the batch is full or while no other is expected.

    A batch that fails fails its waiters, and the batcher goes on. A waiter that is cancelled before
    its batch runs drops out of it.
    """

    def __init__(
        self,
        encode: Encode,
        executor: Executor,
        *,
        max_frames: int,
        max_wait: float,
        max_pending: int,
        under_way: Callable[[], float] = lambda: math.inf,
        observe_queue: Callable[[float], None] = lambda _seconds: None,
        observe_run: Callable[[float, int], None] = lambda _seconds, _sequences: None,
    ) -> None:
        """Embed with `encode`.

        `under_way` counts the sequences that are being prepared or wait here: while it is no more
        than those that wait, nobody else is expected. `observe_queue` is told the seconds that each
        sequence waited, `observe_run` the seconds that each batch took and of how many sequences it
        was.
        """
        self._encode = encode
        self._executor = executor
        self._max_frames = max_frames
        self._max_wait = max_wait
        self._max_pending = max_pending
        self._under_way = under_way
        self._observe_queue = observe_queue
        self._observe_run = observe_run
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve(), name="frame-batcher")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for waiting in self._waiting:
            _fail(waiting, Unavailable("The service is shutting down.", retry_after=5.0))
        self._waiting.clear()

    async def submit(self, silhouettes: Silhouettes) -> Embedding:
        """Embed uint8 [s, 64, 64] in some batch: float32 [p, c].

        Raises `Unavailable` when too many are waiting, and what the batch raised.
        """
        self._drop_cancelled()
        if len(self._waiting) >= self._max_pending:
            raise Unavailable(
                "Too many sequences are waiting to be embedded. Try again in a moment.",
                slug="overloaded",
                retry_after=1.0,
            )
        waiting = _Waiting(silhouettes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        embedding = await waiting.result
        past("queue", waiting.since, waiting.taken)
        past("embed", waiting.taken, perf_counter())
        return embedding

    async def _serve(self) -> None:
        while True:
            await self._wait_for_batch()
            batch = self._take()
            if batch:
                await self._run(batch)

    async def _wait_for_batch(self) -> None:
        """Wait for a first sequence, then until the batch is full or the wait is over."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        until = self._waiting[0].since + self._max_wait
        while (
            self._under_way() > len(self._waiting)
            and sum(len(waiting.silhouettes) for waiting in self._waiting) < self._max_frames
            and (left := until - perf_counter()) > 0
        ):
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        self._drop_cancelled()
        batch: list[_Waiting] = []
        frames = 0
        while self._waiting:
            frames += len(self._waiting[0].silhouettes)
            if batch and frames > self._max_frames:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        started = perf_counter()
        for waiting in batch:
            waiting.taken = started
            self._observe_queue(started - waiting.since)
        loop = asyncio.get_running_loop()
        try:
            embeddings = await loop.run_in_executor(
                self._executor, self._encode, [waiting.silhouettes for waiting in batch]
            )
            if len(embeddings) != len(batch):
                raise RuntimeError(f"{len(batch)} sequences gave {len(embeddings)} embeddings")
        except asyncio.CancelledError:
            for waiting in batch:
                _fail(waiting, Unavailable("The service is shutting down.", retry_after=5.0))
            raise
        except Exception as error:
            for waiting in batch:
                _fail(waiting, error)
        else:
            self._observe_run(perf_counter() - started, len(batch))
            for waiting, embedding in zip(batch, embeddings, strict=True):
                if not waiting.result.done():
                    waiting.result.set_result(embedding)

    def _drop_cancelled(self) -> None:
        if any(waiting.result.done() for waiting in self._waiting):
            self._waiting = deque(item for item in self._waiting if not item.result.done())


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.result.done():
        waiting.result.set_exception(error)

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from service.foundation.errors import Unavailable
from service.gallery.records import Embedding, Silhouettes
from service.serving.batching import FrameBatcher


def frames(count: int, value: int = 0) -> Silhouettes:
    return np.full((count, 64, 64), value, np.uint8)


class Encoder:
    """Remembers its batches; an embedding is the first pixel. Waits for `gate` if there is one."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.batches: list[list[int]] = []
        self.gate = gate

    def __call__(self, walks: Sequence[Silhouettes]) -> NDArray[np.float32]:
        if self.gate is not None:
            self.gate.wait(10)
        self.batches.append([len(walk) for walk in walks])
        if any(walk[0, 0, 0] == 255 for walk in walks):
            raise ArithmeticError("a walk of 255")
        return np.array([[[walk[0, 0, 0]]] for walk in walks], np.float32)


def run(
    encoder: Encoder,
    scenario: Callable[[FrameBatcher], object],
    *,
    max_frames: int = 100,
    max_wait: float = 0.05,
    max_pending: int = 100,
    under_way: Callable[[], float] = lambda: math.inf,
) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            async with FrameBatcher(
                encoder,
                executor,
                max_frames=max_frames,
                max_wait=max_wait,
                max_pending=max_pending,
                under_way=under_way,
            ) as batcher:
                await scenario(batcher)  # type: ignore[misc]

    asyncio.run(main())


def values(embeddings: Sequence[Embedding]) -> list[float]:
    return [float(embedding[0, 0]) for embedding in embeddings]


def test_sequences_that_arrive_together_share_a_batch_and_get_their_own_results() -> None:
    encoder = Encoder()

    async def scenario(batcher: FrameBatcher) -> None:
        made = await asyncio.gather(*(batcher.submit(frames(10, n)) for n in range(5)))
        assert values(made) == [0, 1, 2, 3, 4]

    run(encoder, scenario)
    assert encoder.batches == [[10] * 5]


def test_a_sequence_waits_for_others_only_while_others_are_under_way() -> None:
    waited: dict[int, float] = {}

    async def scenario(batcher: FrameBatcher) -> None:
        for walks in (1, 2):
            under_way[0] = walks
            began = time.monotonic()
            await batcher.submit(frames(1))
            waited[walks] = time.monotonic() - began

    under_way = [0]
    run(Encoder(), scenario, max_wait=1.0, under_way=lambda: under_way[0])
    assert waited[1] < 0.9 < 1.0 <= waited[2]


def test_a_batch_is_cut_by_frames_and_a_longer_sequence_goes_alone() -> None:
    encoder = Encoder()

    async def scenario(batcher: FrameBatcher) -> None:
        await asyncio.gather(*(batcher.submit(frames(n)) for n in (60, 40, 50, 300, 1)))

    run(encoder, scenario)
    assert encoder.batches == [[60, 40], [50], [300], [1]]


def test_a_full_batch_does_not_wait_for_company() -> None:
    async def scenario(batcher: FrameBatcher) -> None:
        async with asyncio.timeout(5):
            await batcher.submit(frames(100))

    run(Encoder(), scenario, max_wait=60)


def test_a_failed_batch_fails_its_waiters_and_the_next_batch_still_runs() -> None:
    async def scenario(batcher: FrameBatcher) -> None:
        outcomes = await asyncio.gather(
            batcher.submit(frames(3, 1)), batcher.submit(frames(3, 255)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [ArithmeticError] * 2
        assert values([await batcher.submit(frames(3, 7))]) == [7]

    run(Encoder(), scenario)


def test_an_encoder_that_loses_a_sequence_fails_the_batch() -> None:
    class Forgetful(Encoder):
        def __call__(self, walks: Sequence[Silhouettes]) -> NDArray[np.float32]:
            return super().__call__(walks)[1:]

    async def scenario(batcher: FrameBatcher) -> None:
        with pytest.raises(RuntimeError):
            await batcher.submit(frames(3))

    run(Forgetful(), scenario)


def test_a_full_queue_is_unavailable_with_retry_after_and_recovers() -> None:
    gate = threading.Event()
    encoder = Encoder(gate)

    async def scenario(batcher: FrameBatcher) -> None:
        running = asyncio.ensure_future(batcher.submit(frames(100)))
        await asyncio.sleep(0.05)
        waiting = [asyncio.ensure_future(batcher.submit(frames(1, n))) for n in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as refused:
            await batcher.submit(frames(1))
        assert refused.value.retry_after is not None
        gate.set()
        await running
        assert values(await asyncio.gather(*waiting)) == [1, 2]
        assert values([await batcher.submit(frames(1, 3))]) == [3]

    run(encoder, scenario, max_pending=2)


def test_a_cancelled_request_drops_out_and_makes_room() -> None:
    gate = threading.Event()
    encoder = Encoder(gate)

    async def scenario(batcher: FrameBatcher) -> None:
        running = asyncio.ensure_future(batcher.submit(frames(100)))
        await asyncio.sleep(0.05)
        waiting = asyncio.ensure_future(batcher.submit(frames(11)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        last = asyncio.ensure_future(batcher.submit(frames(12, 5)))
        await asyncio.sleep(0)
        gate.set()
        await running
        assert values([await last]) == [5]

    run(encoder, scenario, max_pending=1)
    assert encoder.batches == [[100], [12]]


def test_who_waits_when_the_service_stops_is_told_so() -> None:
    gate = threading.Event()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = FrameBatcher(Encoder(gate), executor, max_frames=1, max_wait=0, max_pending=9)
            async with batcher:
                waiting = [asyncio.ensure_future(batcher.submit(frames(1))) for _ in range(2)]
                await asyncio.sleep(0.05)
            gate.set()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Unavailable] * 2

    asyncio.run(main())

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from models.silhouettes.budget import MEBIBYTE, DecodeLimits
from service.foundation.errors import Unavailable
from service.foundation.metrics import Metrics
from service.gallery.records import Silhouettes
from service.recognition.decoder_pool import DecoderPool
from service.recognition.intake import Intake, Upload
from service.recognition.load import Load
from service.serving.batching import FrameBatcher
from tests.service.walkers import walk


def test_the_work_ahead_is_the_walks_times_what_one_takes_in_the_slowest_stage() -> None:
    load = Load(2, expected_s=0.1)
    assert load.seconds == 0
    load.walks = 10
    assert load.seconds == pytest.approx(1.0)
    for _ in range(100):
        load.embedded(0.8, 4)
    assert load.seconds == pytest.approx(2.0, rel=0.01)
    for _ in range(100):
        load.decoded(1.0)
    assert load.seconds == pytest.approx(5.0, rel=0.01)


def test_a_machine_that_slept_is_not_taken_for_a_slow_one() -> None:
    load = Load(1, expected_s=0.1)
    load.walks = 1
    load.embedded(86_400, 1)
    assert load.seconds < 2
    for _ in range(50):
        load.embedded(0.1, 1)
    assert load.seconds < 0.2


def _encode(walks: Sequence[Silhouettes]) -> NDArray[np.float32]:
    return np.zeros((len(walks), 1, 1), np.float32)


def _upload(data: bytes) -> Upload:
    left = [data]

    async def read(_most: int) -> bytes:
        return left.pop() if left else b""

    return Upload("walk", read)


@pytest.mark.parametrize(("ahead", "admitted"), [(0, True), (19, True), (21, False)])
def test_nobody_is_let_in_behind_more_work_than_they_may_wait_for(
    ahead: int, admitted: bool
) -> None:
    async def run() -> None:
        load = Load(1, expected_s=0.1)
        load.walks = ahead
        pool = DecoderPool(DecodeLimits(), clean=True, max_upload_bytes=MEBIBYTE, workers=1)
        with ThreadPoolExecutor(1) as encoders:
            batcher = FrameBatcher(_encode, encoders, max_frames=64, max_wait=0, max_pending=64)
            await ask(pool, batcher, load)

    async def ask(pool: DecoderPool, batcher: FrameBatcher, load: Load) -> None:
        async with pool as decoders, batcher:
            intake = Intake(decoders, load, Metrics(), max_pending=64, max_wait=2.0)
            embedding = intake.embed([_upload(walk(1))], batcher)
            if admitted:
                (embedded,) = await embedding
                assert embedded.silhouettes.shape == (40, 64, 64)
            else:
                with pytest.raises(Unavailable) as refused:
                    await embedding
                assert refused.value.retry_after == pytest.approx(2.1)
            assert load.walks == ahead

    asyncio.run(run())

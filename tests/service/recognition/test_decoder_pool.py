from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from models.silhouettes.budget import MEBIBYTE, DecodeLimits
from models.silhouettes.errors import (
    MalformedSequence,
    PoorSequence,
    SequenceTooLarge,
    UnsupportedSequence,
)
from models.silhouettes.prepare import Prepared, prepare_upload
from service.foundation.errors import Unavailable
from service.recognition.decoder_pool import Decoder, DecoderPool, Read
from tests.service.walkers import npz, walk, walker

LIMITS = DecodeLimits(max_frames=50, max_decoded_bytes=8 * MEBIBYTE)
BAD = "tests.service.recognition.bad_decoder"


def upload(data: bytes) -> Read:
    left = [data]

    async def read(_most: int) -> bytes:
        return left.pop() if left else b""

    return read


def pool(
    template: str = BAD,
    limits: DecodeLimits = LIMITS,
    *,
    workers: int = 1,
    slow_after: float = 0.2,
    grace_s: float = 3.0,
) -> DecoderPool:
    return DecoderPool(
        limits,
        clean=True,
        max_upload_bytes=MEBIBYTE,
        workers=workers,
        slow_after=slow_after,
        grace_s=grace_s,
        template=template,
    )


async def prepare(decoders: DecoderPool, *uploads: bytes) -> Prepared:
    """Of one request; the last one's walk."""
    async with decoders.turn() as turn:
        for data in uploads:
            decoded = await turn.prepare(upload(data))
        return decoded.prepared


def with_pool(
    check: Callable[[DecoderPool], Awaitable[None]],
    template: str = BAD,
    limits: DecodeLimits = LIMITS,
    **options: Any,
) -> None:
    async def run() -> None:
        async with pool(template, limits, **options) as decoders:
            await check(decoders)

    asyncio.run(run())


@asynccontextmanager
async def started(work: Awaitable[Any]) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def decoders_of(process: psutil.Process) -> list[psutil.Process]:
    return [
        child
        for child in process.children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
        and any("decoder" in word for word in child.cmdline())
    ]


async def until(holds: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_a_walk_comes_back_as_it_would_be_prepared_here() -> None:
    data = walk(1)
    here = prepare_upload(data, LIMITS)

    async def check(decoders: DecoderPool) -> None:
        for _ in range(2):
            there = await prepare(decoders, data)
            np.testing.assert_array_equal(there.silhouettes, here.silhouettes)
            assert there.quality.score == here.quality.score
            assert there.quality.frames_in == here.quality.frames_in

    with_pool(check, "service.recognition.decoder_process")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", MalformedSequence),
        (b"no walk", UnsupportedSequence),
        (npz(walker(1, frames=60)), SequenceTooLarge),
        (npz(walker(1, frames=4)), PoorSequence),
    ],
)
def test_a_refusal_comes_back_as_it_is(data: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind) as here:
        prepare_upload(data, LIMITS)

    async def check(decoders: DecoderPool) -> None:
        with pytest.raises(kind) as there:
            await prepare(decoders, data)
        assert str(there.value) == str(here.value)
        if isinstance(there.value, PoorSequence) and isinstance(here.value, PoorSequence):
            assert there.value.reasons == here.value.reasons
            assert there.value.quality == here.value.quality
        await prepare(decoders, walk(1))

    with_pool(check, "service.recognition.decoder_process")


@pytest.mark.parametrize(
    "command",
    [b"memory 1000000000", b"crash", b"frames 51", b"score 1e999", b"score nan", b"score 7"],
)
def test_what_a_decoder_does_wrong_refuses_its_upload_and_no_other(command: bytes) -> None:
    async def check(decoders: DecoderPool) -> None:
        with pytest.raises(SequenceTooLarge):
            await prepare(decoders, command)
        await prepare(decoders, b"fine")

    with_pool(check)


def test_an_upload_within_the_allowance_of_memory_is_taken() -> None:
    async def check(decoders: DecoderPool) -> None:
        await prepare(decoders, b"memory 300000000")

    with_pool(check)


@pytest.mark.parametrize("command", [b"spin", b"sleep"])
def test_an_upload_is_ended_when_its_time_is_over(command: bytes) -> None:
    async def check(decoders: DecoderPool) -> None:
        with pytest.raises(SequenceTooLarge, match=r"longer than 0\.3 s"):
            await prepare(decoders, command)
        await until(lambda: len(decoders_of(psutil.Process())) <= 2)  # the template and a spare
        await prepare(decoders, b"fine")

    with_pool(check, limits=DecodeLimits(max_seconds=0.3), grace_s=0.1)


def test_the_kernel_ends_a_decoder_that_nobody_ends() -> None:
    async def check(decoders: DecoderPool) -> None:
        with pytest.raises(SequenceTooLarge, match="more memory or time"):
            await prepare(decoders, b"spin")

    with_pool(check, limits=DecodeLimits(max_seconds=0.3), grace_s=60)


def test_slow_uploads_keep_no_quick_one_waiting() -> None:
    async def check(decoders: DecoderPool) -> None:
        async with started(prepare(decoders, b"sleep")) as first:
            await until(lambda: not decoders.slow.free)
            for _ in range(3):
                await prepare(decoders, b"fine")
            assert not first.done()

    with_pool(check)


def test_a_slow_upload_too_many_is_told_to_come_back_once_others_wait() -> None:
    async def check(decoders: DecoderPool) -> None:
        async with started(prepare(decoders, b"sleep")) as first:
            await until(lambda: not decoders.slow.free)
            async with started(prepare(decoders, b"sleep")) as second:
                await until(lambda: not decoders.quick.free)
                await asyncio.sleep(0.5)
                assert not second.done()  # nobody waits
                await prepare(decoders, b"fine")
                with pytest.raises(Unavailable):
                    await second
            assert not first.done()

    with_pool(check)


def test_a_slow_request_keeps_its_place_for_all_of_its_walks() -> None:
    async def check(decoders: DecoderPool) -> None:
        async with decoders.turn() as turn:
            async with started(turn.prepare(upload(b"sleep"))):
                await until(lambda: turn.is_slow)
            await turn.prepare(upload(b"fine"))
            assert decoders.quick.free
            assert not decoders.slow.free
        assert decoders.slow.free

    with_pool(check)


def test_an_upload_that_nobody_waits_for_is_ended() -> None:
    async def check(decoders: DecoderPool) -> None:
        await prepare(decoders, b"fine")
        async with started(prepare(decoders, b"spin")):
            await until(lambda: not decoders.slow.free)
            await until(lambda: len(decoders_of(psutil.Process())) >= 3)
        assert decoders.slow.free
        await until(lambda: len(decoders_of(psutil.Process())) <= 2)

    with_pool(check)


def test_a_decoder_takes_walk_after_walk_and_nothing_after_a_refusal() -> None:
    async def check(decoders: DecoderPool) -> None:
        async def number() -> float:
            return (await prepare(decoders, b"number")).quality.score

        first = await number()
        assert await number() == first
        with pytest.raises(SequenceTooLarge):
            await prepare(decoders, b"frames 60")
        assert await number() != first

    with_pool(check, slow_after=60)  # a slow walk would be its decoder's last


def test_decoders_start_again_after_their_template_was_killed() -> None:
    async def check(decoders: DecoderPool) -> None:
        await prepare(decoders, b"fine")
        for process in decoders_of(psutil.Process()):
            process.kill()
        await until(lambda: not decoders_of(psutil.Process()))
        await asyncio.sleep(0.1)  # in which the ends of their sockets are noticed
        await prepare(decoders, b"fine")

    with_pool(check)


def test_a_decoder_knows_no_secret_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAITID_ENCRYPTION_KEYS", "secret")
    monkeypatch.setenv("LANG", "C.UTF-8")

    async def check(decoders: DecoderPool) -> None:
        assert len((await prepare(decoders, b"secret LANG")).silhouettes) == 2
        assert len((await prepare(decoders, b"secret GAITID_ENCRYPTION_KEYS")).silhouettes) == 1

    with_pool(check)


def test_a_pool_that_is_closed_leaves_no_process_and_waits_for_no_upload() -> None:
    async def run() -> float:
        async with pool() as decoders, started(prepare(decoders, b"spin")):
            await until(lambda: not decoders.slow.free)
            began = time.monotonic()
        return time.monotonic() - began

    assert asyncio.run(run()) < 5
    assert not decoders_of(psutil.Process())


def test_a_service_that_stops_gives_slow_uploads_up_and_lets_quick_ones_end() -> None:
    async def check(decoders: DecoderPool) -> None:
        async with started(prepare(decoders, b"sleep")) as slow:
            await until(lambda: not decoders.slow.free)
            decoders.give_up_slow()
            with pytest.raises(Unavailable):
                await slow
        await prepare(decoders, b"fine")
        with pytest.raises(Unavailable):
            await prepare(decoders, b"sleep")

    with_pool(check)


def test_an_upload_that_was_slow_before_it_had_a_decoder_is_given_up_too() -> None:
    async def check(decoders: DecoderPool) -> None:
        await prepare(decoders, b"fine")
        take = decoders._take

        async def take_late() -> Decoder:
            await until(lambda: not decoders.slow.free)
            decoders.give_up_slow()
            return await take()

        decoders._take = take_late  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await asyncio.wait_for(prepare(decoders, b"sleep"), 15)

    with_pool(check)


def test_decoders_end_with_the_service_however_it_ends() -> None:
    program = (
        "import asyncio\n"
        "from tests.service.recognition.test_decoder_pool import pool, prepare\n"
        "async def run():\n"
        "    async with pool() as decoders:\n"
        "        await prepare(decoders, b'fine')\n"
        "        print('ready', flush=True)\n"
        "        await prepare(decoders, b'spin')\n"
        "asyncio.run(run())\n"
    )
    service = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert service.stdout is not None
    with service.stdout:
        assert service.stdout.readline() == b"ready\n"
        left = psutil.Process(service.pid).children(recursive=True)
        assert len(left) >= 2
        os.kill(service.pid, signal.SIGKILL)
        service.wait()
        _, alive = psutil.wait_procs(left, timeout=15)
        assert not alive

"""Uploads that want all memory and all time, to a service that may have little of both."""

from __future__ import annotations

import gzip
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from tests.e2e.deployment import Deployment
from tests.models.silhouettes.uploads import image, video, zipped
from tests.service.walkers import walk

LIMIT = 6 * 2**30  # of the address space of each process, libraries and all
MEMORY = 1100 * 2**20  # that a decoder may hold


def names() -> bytes:
    """A few hundred kilobytes of names, were it not for gzip."""
    name = "1a" * 30_000
    return gzip.compress(zipped((f"{number:05}{name}", b"") for number in range(600)))


def dots() -> bytes:
    """Noise without end: 31 frames of 4096 x 4096 with a thin T and 31,000 dots."""
    frame = np.zeros((4096, 4096), np.uint8)
    frame[10, 5:-5] = 255
    frame[10:130, 2048] = 255
    for row in range(160, 4080, 23):
        for column in range(8, 4080, 23):
            frame[row : row + 7, column : column + 7] = 255
    png = image(frame)
    return zipped((f"{number}.png", png) for number in range(31))


def pictures() -> bytes:
    """Large pictures, of which a decoder holds many."""
    return video([np.zeros((4096, 4096), np.uint8)] * 3, pixels="yuv444p10le")


def identify(url: str, data: bytes) -> int:
    files = {"sequence": ("walk", data)}
    return httpx.post(f"{url}/identify", files=files, timeout=60).status_code


@pytest.mark.slow
def test_hostile_uploads_cost_their_senders_an_answer_and_nobody_else_anything(
    deployment: Deployment,
) -> None:
    deployment.set(GAITID_MAX_DECODE_SECONDS="8", GAITID_DECODE_WORKERS="2")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, before[1]))
    try:
        client = deployment.start()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    client.enroll("p1", [("walk", walk(1))])
    assert deployment.process is not None
    service = psutil.Process(deployment.process.pid)
    largest = 0
    hostile = [dots(), dots(), names(), pictures(), names(), pictures()]
    with ThreadPoolExecutor(len(hostile)) as pool:
        answers = [pool.submit(identify, deployment.url, data) for data in hostile]
        served = 0
        while not all(answer.done() for answer in answers):
            status = identify(deployment.url, walk(1, phase=0.5))
            served += status == 200
            assert status in (200, 503)
            for process in [service, *service.children(recursive=True)]:
                try:
                    if "decoder" in " ".join(process.cmdline()):
                        largest = max(largest, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
    assert [answer.result() for answer in answers[2:]] == [413] * 4
    assert {answer.result() for answer in answers[:2]} <= {413, 422, 503}
    assert served >= 3
    assert largest < MEMORY
    assert identify(deployment.url, walk(1, phase=0.5)) == 200


@pytest.mark.slow
def test_a_service_that_is_told_to_stop_waits_for_no_upload(deployment: Deployment) -> None:
    deployment.start()
    assert deployment.process is not None
    decoders = psutil.Process(deployment.process.pid).children(recursive=True)
    data = dots()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(identify, deployment.url, data)
        time.sleep(3)  # they are slow by then
        began = time.monotonic()
        deployment.stop(signal.SIGTERM)
        assert time.monotonic() - began < 9  # uvicorn would wait for ten seconds
    assert not any(process.is_running() for process in decoders)

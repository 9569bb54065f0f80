"""What reading uploads in processes of their own costs, and what hostile uploads cost honest ones.

A walk of 40 raw frames is prepared in this process and in a decoder, taking turns; then in a
decoder while as many slow uploads as there are places for are read, and two more wait.

    python -m benchmarks.decoders [--out FILE.json]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import time
import zipfile
from contextlib import AsyncExitStack
from pathlib import Path

import cv2
import numpy as np

from benchmarks import machine
from models.silhouettes import prepare_upload
from models.silhouettes.budget import MEBIBYTE, DecodeLimits
from service.cli.demo_walks import WALKS
from service.recognition.decoder_pool import DecoderPool, Read

TIMES = 200
WORKERS = 2
LIMITS = DecodeLimits()


def upload(data: bytes) -> Read:
    """Bytes as a request's file."""
    left = [data]

    async def read(_most: int) -> bytes:
        return left.pop() if left else b""

    return read


def slow_upload() -> bytes:
    """As many pixels as may be decoded, full of specks: it takes all the time there is."""
    frame = np.zeros((4096, 4096), np.uint8)
    for row in range(160, 4080, 23):
        for column in range(8, 4080, 23):
            frame[row : row + 7, column : column + 7] = 255
    _, png = cv2.imencode(".png", frame)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for number in range(31):
            target.writestr(f"{number}.png", png.tobytes())
    return archive.getvalue()


async def measure() -> dict[str, object]:
    """Everything, as rows of a table."""
    data = next(Path(WALKS).rglob("*.zip")).read_bytes()
    here: list[float] = []
    there: list[float] = []
    beside: list[float] = []
    async with DecoderPool(
        LIMITS, clean=True, max_upload_bytes=64 * MEBIBYTE, workers=WORKERS
    ) as pool:

        async def prepared(content: bytes) -> float:
            began = time.perf_counter()
            async with pool.turn() as turn:
                await turn.prepare(upload(content))
            return time.perf_counter() - began

        for _ in range(TIMES):
            began = time.perf_counter()
            prepare_upload(data, LIMITS)
            here.append(time.perf_counter() - began)
            there.append(await prepared(data))
        hostile = slow_upload()
        async with AsyncExitStack() as stack:
            tasks = [asyncio.create_task(prepared(hostile)) for _ in range(WORKERS + 2)]
            stack.callback(lambda: [task.cancel() for task in tasks])
            await asyncio.sleep(1)
            until = time.perf_counter() + 15
            while time.perf_counter() < until:
                beside.append(await prepared(data))
        await asyncio.gather(*tasks, return_exceptions=True)
    rows = {"in this process": here, "in a decoder": there, "beside slow uploads": beside}
    return {
        "benchmark": "preparing a walk of 40 raw frames",
        "machine": machine.describe(),
        "rows": {
            name: machine.milliseconds(seconds)
            | {
                "p99_ms": round(float(np.percentile(seconds, 99)) * 1000, 2),
                "walks": len(seconds),
                "to in this process": round(float(np.median(seconds) / np.median(here)), 2),
            }
            for name, seconds in rows.items()
        },
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(asyncio.run(measure()), options.out)


if __name__ == "__main__":
    main()

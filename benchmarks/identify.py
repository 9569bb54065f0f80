"""POST /identify over HTTP against a running server, with 1,000 and 10,000 enrolled sequences.

The gallery is filled through the store (enrolling 10,000 walks over HTTP takes minutes and measures
something else); embeddings are random directions, which is as slow to search exactly as any other.
Requests are sent one after the other, then by four clients at once.

    python -m benchmarks.identify [--checkpoint DIR] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt

from benchmarks import machine
from benchmarks.embedding import SHIPPED
from benchmarks.gallery import fill
from benchmarks.serving import server
from models.card import read_card
from service.cli.demo_walks import WALKS

SIZES = (1_000, 10_000)
REQUESTS = 60
CLIENTS = 4


def measure(checkpoint_dir: Path) -> dict[str, object]:
    """Latency seen by a client, and how many identifications a second four clients get."""
    card = read_card(checkpoint_dir)
    shape = (card.parts, card.channels)
    blank = np.zeros((1, 64, 64), np.uint8)
    walk = sorted(WALKS.glob("**/*.zip"))[0].read_bytes()
    prepared = io.BytesIO()
    np.savez_compressed(prepared, silhouettes=_prepared(walk))
    rows = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            data_dir = Path(folder) / "data"
            fill(data_dir, size, card.digest, shape, lambda _rng: blank)
            with server(data_dir, checkpoint_dir, worker=False) as client:
                rows[f"{size} enrolled"] = {
                    "raw walk": _latency(client, walk),
                    "prepared walk": _latency(client, prepared.getvalue()),
                    f"{CLIENTS} clients, identifications a second": _throughput(
                        str(client.base_url), walk
                    ),
                }
    return {
        "benchmark": "identify over HTTP",
        "machine": machine.describe(),
        "checkpoint": {"name": card.name, "digest": card.digest},
        "requests": REQUESTS,
        "rows": rows,
    }


def _prepared(walk: bytes) -> npt.NDArray[np.uint8]:
    from models.silhouettes import DecodeLimits, decode, prepare

    return prepare(decode(walk, DecodeLimits()), clean=True).silhouettes


def _identify(client: httpx.Client, walk: bytes) -> dict[str, object]:
    answer = client.post("/identify", files={"sequence": ("walk", walk)})
    answer.raise_for_status()
    body: dict[str, object] = answer.json()
    return body


def _latency(client: httpx.Client, walk: bytes) -> dict[str, object]:
    seconds = []
    for number in range(REQUESTS + 5):
        began = time.perf_counter()
        answer = _identify(client, walk)
        if number >= 5:
            seconds.append(time.perf_counter() - began)
    return {**machine.milliseconds(seconds), "frames": answer["probe"]["frames"]}  # type: ignore[index]


def _throughput(url: str, walk: bytes) -> float:
    def client() -> None:
        with httpx.Client(base_url=url, timeout=60) as mine:
            for _ in range(REQUESTS // CLIENTS):
                _identify(mine, walk)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(REQUESTS // CLIENTS * CLIENTS / (time.perf_counter() - began), 1)


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(measure(options.checkpoint), options.out)


if __name__ == "__main__":
    main()

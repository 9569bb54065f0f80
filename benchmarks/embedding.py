"""Embedding a walk of 30 frames: our encoder against a plain eager float32 run of the network.

Both take turns in one process, so that they share the noise of the machine.

    python -m benchmarks.embedding [--checkpoint DIR] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import machine
from models import checkpoint
from models.encoder.encoder import Encoder

FRAMES = 30
ROUNDS = 30
BATCH = 8
PRECISIONS: tuple[Literal["float32", "auto"], ...] = ("float32", "auto")
Embeddings = npt.NDArray[np.float32]  # [n, p, c]
Embed = Callable[[int], Embeddings]  # the first so many walks
SHIPPED = Path(__file__).parents[1] / "models" / "checkpoints" / "default"


def measure(directory: Path) -> dict[str, object]:
    """Latency of one walk, throughput of eight at a time, and how far the embeddings differ."""
    network, card = checkpoint.load(directory)
    network.eval()
    rng = np.random.default_rng(0)
    walks = [
        (rng.random((FRAMES, card.input.height, card.input.width)) < 0.3).astype(np.uint8) * 255
        for _ in range(BATCH)
    ]

    def eager(count: int) -> Embeddings:
        clips = torch.from_numpy(np.stack(walks[:count])).float() / 255
        with torch.inference_mode():
            compared = network.matching(network(clips).embeddings)
            embeddings: Embeddings = compared.numpy()
            return embeddings

    def encoding(encoder: Encoder) -> Embed:
        return lambda count: encoder.encode(walks[:count])

    runs: dict[str, Embed] = {"eager float32": eager}
    for precision in PRECISIONS:
        encoder = Encoder.open(directory, device="cpu", precision=precision)
        runs[f"encoder {encoder.precision}"] = encoding(encoder)

    seconds: dict[str, dict[int, list[float]]] = {name: {1: [], BATCH: []} for name in runs}
    for round_number in range(ROUNDS + 2):
        for name, run in runs.items():
            for count in (1, BATCH):
                began = time.perf_counter()
                run(count)
                if round_number >= 2:  # the first ones warm up
                    seconds[name][count].append(time.perf_counter() - began)

    exact = eager(BATCH)
    rows = {}
    for name, run in runs.items():
        latency = machine.milliseconds(seconds[name][1])
        ours = run(BATCH)
        cosine = (ours * exact).sum(-1) / (
            np.linalg.norm(ours, axis=-1) * np.linalg.norm(exact, axis=-1)
        )
        rows[name] = {
            **latency,
            "walks_per_s": round(BATCH / float(np.median(seconds[name][BATCH])), 1),
            "speed_up": round(
                float(np.median(seconds["eager float32"][1]) / np.median(seconds[name][1])), 2
            ),
            "worst_part_cosine": round(float(cosine.min()), 6),
        }
    return {
        "benchmark": "embedding",
        "machine": machine.describe(),
        "checkpoint": {"name": card.name, "digest": card.digest},
        "frames": FRAMES,
        "rounds": ROUNDS,
        "rows": rows,
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--threads", type=int, default=1, help="as GAITID_EMBED_THREADS")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine.publish(measure(options.checkpoint), options.out)


if __name__ == "__main__":
    main()

"""Activate a model over HTTP while others identify: how long it takes, and what they notice.

The gallery is filled through the store with the demo's walkers, each shifted and thinned anew so
that no two walks are one. The new model has the shipped student's shape and random weights, which
is as slow to embed with as any. Clients identify one walk after the other before, during and after;
every answer is checked to be of one model: its digest, its threshold, and its own walk found.

    python -m benchmarks.activation [--sequences N] [--clients N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import torch

from benchmarks import machine
from benchmarks.embedding import SHIPPED
from benchmarks.gallery import DrawWalk, fill
from benchmarks.serving import server
from models import checkpoint
from models.card import Card, read_card
from models.checkpoint import card_of
from models.networks import registry
from models.silhouettes import DecodeLimits, decode, prepare
from service.cli.demo_walks import WALKS

SEQUENCES = 2_000
CLIENTS = 2
STEADY_S = 20.0  # before and after
THRESHOLD = 0.123  # of the new model, so that an answer shows whose it is


@dataclass
class Load:
    """What the clients saw: when each answer came, how long it took, and by which model."""

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def between(self, begin: float, end: float) -> dict[str, object]:
        """Latencies of the answers that came in a period."""
        seconds = [took for at, took, _ in self.answers if begin <= at < end]
        return {**machine.milliseconds(seconds), "max_ms": round(max(seconds) * 1000, 1),
                "answers": len(seconds)}  # fmt: skip


def second_model(folder: Path) -> Card:
    """A checkpoint of the shipped one's shape, in float32, with random weights."""
    card = read_card(SHIPPED)
    torch.manual_seed(1)
    network = registry.build(card.architecture, {**card.config, "quantised": None})
    described = card_of(network, name="new", metric=card.metric, threshold=THRESHOLD)
    return checkpoint.save(folder, network, described, half=True)


def walking() -> DrawWalk:
    """Walks that look like walks: those of the demo, moved and worn a little."""
    walks = [
        prepare(decode(path.read_bytes(), DecodeLimits()), clean=True).silhouettes
        for path in sorted(WALKS.glob("**/*.zip"))
    ]
    return lambda rng: _another(walks[rng.integers(len(walks))], rng)


def _another(walk: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    moved = np.roll(walk, (rng.integers(len(walk)), rng.integers(-2, 3)), axis=(0, 2))
    return np.where(rng.random(moved.shape) < 0.02, np.uint8(0), moved)


def identify(url: httpx.URL, walk: bytes, digests: dict[str, float], load: Load,
             stop: threading.Event) -> None:  # fmt: skip
    """One client: one identification after the other, each answer checked."""
    with httpx.Client(base_url=url, timeout=120) as client:
        while not stop.is_set():
            began = time.perf_counter()
            answer = client.post("/identify", files={"sequence": ("walk", walk)})
            at = time.perf_counter()
            body = answer.json()
            if answer.status_code != 200:
                load.faults.append(answer.text)
                continue
            digest = body["model"]["digest"]
            best = body["candidates"][0]
            if body["threshold"] != digests.get(digest) or best["subject_id"] != "me":
                load.faults.append(answer.text)
            load.answers.append((at, at - began, digest))


def measure(sequences: int, clients: int) -> dict[str, object]:
    """Time and latencies; every answer that mixed two models is counted."""
    with tempfile.TemporaryDirectory() as folder:
        models, data_dir = Path(folder) / "models", Path(folder) / "data"
        shutil.copytree(SHIPPED, models / "default")
        new = second_model(models / "new")
        old = read_card(SHIPPED)
        fill(data_dir, sequences, old.digest, (old.parts, old.channels), walking())
        walk = sorted(WALKS.glob("**/*.zip"))[0].read_bytes()
        digests = {old.digest: old.threshold, new.digest: new.threshold}
        load, stop = Load(), threading.Event()
        with server(data_dir, models / "default", worker=True) as client:
            client.post(
                "/enroll", data={"subject_id": "me"}, files={"sequence": ("walk", walk)}
            ).raise_for_status()
            threads = [
                threading.Thread(target=identify, args=(client.base_url, walk, digests, load, stop))
                for _ in range(clients)
            ]
            for thread in threads:
                thread.start()
            try:
                began = time.perf_counter()
                time.sleep(STEADY_S)
                posted = time.perf_counter()
                job = client.post("/models/new/activate").raise_for_status().json()
                while job["finished_at"] is None:
                    time.sleep(0.2)
                    job = client.get(f"/jobs/{job['id']}").json()
                swapped = time.perf_counter()
                while load.answers[-1][2] != new.digest:
                    time.sleep(0.01)
                exchanged = time.perf_counter()
                time.sleep(STEADY_S)
                back = time.perf_counter()
                client.post("/models/rollback").raise_for_status()
                rolled_back = time.perf_counter()
                seen = client.post("/identify", files={"sequence": ("walk", walk)}).json()
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
        if job["status"] != "succeeded":
            raise RuntimeError(f"the activation {job['status']}: {job['error']}")
    return {
        "benchmark": "activation under load",
        "machine": machine.describe(),
        "checkpoint": {"name": old.name, "digest": old.digest},
        "sequences": sequences + 1,
        "clients": clients,
        "activation_s": round(swapped - posted, 1),
        "until_answered_by_the_new_model_s": round(exchanged - swapped, 2),
        "rollback_s": round(rolled_back - back, 2),
        "answered_by_the_old_model_right_after": seen["model"]["digest"] == old.digest,
        "rows": {
            "before": load.between(began, posted),
            "during": load.between(posted, exchanged),
            "after": load.between(exchanged, back),
        },
        "answers": len(load.answers),
        "refused_or_mixed": len(load.faults),
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sequences", type=int, default=SEQUENCES)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(measure(options.sequences, options.clients), options.out)


if __name__ == "__main__":
    main()

"""Embedding walks of 30 and 60 frames: the encoder in each form against torch's, in turns.

The former encoder is torch's bfloat16 with the last stage in float32. Times are of the processor,
the least of many rounds: what other programs take of a busy machine is not in them.

    python -m benchmarks.embedding [--checkpoint DIR] [--quantised DIR] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks import machine
from models.encoder import Encoder, Walk
from models.encoder.eager import EagerBackbone
from training.data.pack import Pack

FRAMES: Final = (30, 60)
SHIPPED: Final = Path(__file__).parents[1] / "models" / "checkpoints" / "default"
FORMER: Final = "torch, bfloat16"


class TorchEncoder(Encoder):
    """An encoder that runs its backbone as on a GPU."""

    def run_on_torch(self, *, bfloat16: bool) -> None:
        """From now on."""
        self._backbone = EagerBackbone(
            self._network.backbone, self.device, bfloat16=bfloat16, keeps_last_stage=bfloat16
        )


def encoders(checkpoint: Path, quantised: Path | None) -> dict[str, Encoder]:
    """Each form by name; the first is what the others are compared with, in speed."""
    former, exact = (TorchEncoder.open(checkpoint, "cpu", "float32") for _ in range(2))
    former.run_on_torch(bfloat16=True)
    exact.run_on_torch(bfloat16=False)
    forms: dict[str, Encoder] = {FORMER: former, "torch, float32": exact}
    for precision in ("float32", "bfloat16"):
        forms[f"OpenVINO, {precision}"] = Encoder.open(checkpoint, "cpu", precision)
    if quantised is not None:
        forms["OpenVINO, int8"] = Encoder.open(quantised, "cpu")
    return forms


def measure(
    checkpoint: Path, quantised: Path | None, pack: Pack | None, rounds: int
) -> dict[str, object]:
    """Milliseconds a walk of each form, and how near its embeddings are to float32's."""
    forms = encoders(checkpoint, quantised)
    walks = {frames: _walk(frames, pack) for frames in FRAMES}
    least: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for name, encoder in forms.items():
            for frames, walk in walks.items():
                began = time.process_time()
                encoder.encode([walk])
                took = time.process_time() - began
                least[name, frames] = min(took, least.get((name, frames), took))
    several = list(walks.values()) if pack is None else _several(pack)
    exact = forms["torch, float32"].encode(several)
    rows = {}
    for name, encoder in forms.items():
        ours = encoder.encode(several)
        cosines = (ours * exact).sum(2) / (
            np.linalg.norm(ours, axis=2) * np.linalg.norm(exact, axis=2)
        )
        rows[name] = {
            **{f"ms_{frames}_frames": round(least[name, frames] * 1e3, 1) for frames in FRAMES},
            **{
                f"times_faster_{frames}": round(least[FORMER, frames] / least[name, frames], 2)
                for frames in FRAMES
            },
            "mean_part_cosine": round(float(cosines.mean()), 5),
            "worst_part_cosine": round(float(cosines.min()), 5),
        }
    card = forms[FORMER].card
    return {
        "benchmark": "embedding",
        "machine": machine.describe(),
        "checkpoint": {"name": card.name, "digest": card.digest},
        "walks_compared": len(several),
        "rounds": rounds,
        "rows": rows,
    }


def _walk(frames: int, pack: Pack | None) -> Walk:
    """A walk of so many frames: a real one of the pack over and over, or noise."""
    if pack is None:
        return (np.random.default_rng(0).random((frames, 64, 64)) < 0.3).astype(np.uint8) * 255
    return np.resize(pack.silhouettes(0), (frames, 64, 64))


def _several(pack: Pack) -> list[Walk]:
    return [pack.silhouettes(at) for at in range(0, len(pack), max(1, len(pack) // 40))]


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--quantised", type=Path, default=SHIPPED.with_name("default-int8"))
    parser.add_argument("--pack", type=Path, help="walks to compare embeddings of; else noise")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1, help="as GAITID_EMBED_THREADS")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pack = Pack.open(options.pack) if options.pack else None
    result = measure(options.checkpoint, options.quantised, pack, options.rounds)
    machine.publish(result, options.out)


if __name__ == "__main__":
    main()

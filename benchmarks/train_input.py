"""How many training sequences a second the input path delivers on one core.

Ours (packed bits gathered for the whole batch, unpacked and augmented as tensors) beside the way of
the field's loaders (every sequence unpickled, every frame warped with OpenCV), in one process, with
the same clips and the same augmentation. The device is the CPU: the worst case for ours.

    python -m benchmarks.train_input [--out FILE.json]
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from benchmarks import machine
from benchmarks.plain_loop import augment_frames, pick
from training.data import Augmentation, OrderedClip, Pack, pack_dataset
from training.data.augmentation import augment, generator
from training.data.batches import BatchSource

SUBJECTS, SEQUENCES, FRAMES = 16, 4, 30
CLIP = OrderedClip(frames=FRAMES, skip=10)
WALK_FRAMES = 80
STEPS = 20
Silhouettes = npt.NDArray[np.uint8]


def write_walks(folder: Path) -> None:
    """A tree of pickles: 32 subjects, 4 binary walks each."""
    rng = np.random.default_rng(0)
    for subject in range(2 * SUBJECTS):
        for walk in range(SEQUENCES):
            frames = np.zeros((WALK_FRAMES, 64, 64), np.uint8)
            phase, width = rng.uniform(0, 6), int(rng.integers(5, 10))
            for s, image in enumerate(frames):
                cv2.circle(image, (32, 7), 5, 255, -1)
                cv2.ellipse(image, (32, 26), (width, 16), 0, 0, 360, 255, -1)
                for side in (-1, 1):
                    foot = 32 + side * int(9 * np.sin(s / 4 + phase))
                    cv2.line(image, (32, 38), (foot, 63), 255, 5)
            view = folder / f"{subject:03}" / f"nm-{walk:02}" / "090"
            view.mkdir(parents=True)
            (view / "090.pkl").write_bytes(pickle.dumps(frames))


def ours(pack: Pack, augmentation: Augmentation) -> Callable[[int], None]:
    """The input path of training, gather to views."""
    source = BatchSource(
        pack,
        subjects=SUBJECTS,
        sequences=SEQUENCES,
        clip=CLIP,
        seed=0,
    )

    def step(number: int) -> None:
        augment(source.batch(number).silhouettes, augmentation, generator(0, number))

    return step


def frame_by_frame(folder: Path, augmentation: Augmentation) -> Callable[[int], None]:
    """The same with a loop over sequences and frames."""
    files = sorted(folder.glob("*/*/*/*.pkl"))

    def step(number: int) -> None:
        rng = np.random.default_rng(number)
        batch = []
        for choice in rng.choice(len(files), SUBJECTS * SEQUENCES, replace=False):
            frames: Silhouettes = pickle.loads(files[choice].read_bytes())  # noqa: S301  our own
            batch.append(augment_frames(pick(frames, CLIP, rng), augmentation, rng))
        torch.from_numpy(np.stack(batch))

    return step


def samples_per_second(paths: dict[str, Callable[[int], None]]) -> dict[str, float]:
    """Median over steps, after two to warm up. The paths take turns: they share the noise."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(STEPS + 2):
        for name, step in paths.items():
            begin = time.perf_counter()
            step(number)
            seconds[name].append(time.perf_counter() - begin)
    return {
        name: SUBJECTS * SEQUENCES / statistics.median(times[2:]) for name, times in seconds.items()
    }


def main() -> None:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        walks = Path(folder) / "walks"
        write_walks(walks)
        packs = {
            encoding: pack_dataset(walks, Path(folder) / f"{encoding}.pack", encoding=encoding)
            for encoding in ("binary", "grey")
        }
        variants = {
            "none": Augmentation.none(),
            "published": Augmentation(),
            "faults": Augmentation.faults(),
        }
        for name, augmentation in variants.items():
            paths = {f"batch, {kind}": ours(pack, augmentation) for kind, pack in packs.items()}
            if name != "faults":  # the field's loaders have nothing like it
                paths["frame by frame"] = frame_by_frame(walks, augmentation)
            rows[f"augmentation: {name}"] = {
                f"{path}, clips/s": round(rate) for path, rate in samples_per_second(paths).items()
            }
    result = {
        "benchmark": "training input, clips a second on one core",
        "machine": machine.describe(),
        "batch": {"sequences": SUBJECTS * SEQUENCES, "frames": FRAMES},
        "rows": rows,
    }
    machine.publish(result, arguments.out)


if __name__ == "__main__":
    main()

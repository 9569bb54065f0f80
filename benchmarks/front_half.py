"""What becomes of the bytes of one upload before the network, stage by stage, on one core.

A walk of 40 frames is decoded, cleaned, normalised and judged, each timed on its own, and prepared
as the service does it, in one go. The cases take turns; a figure is time of the processor.

    python -m benchmarks.front_half [--out FILE.json]
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import machine
from models.silhouettes import DecodeLimits, Frame, clean, decode, judge, normalise, prepare
from models.silhouettes.prepare import prepare_upload
from service.cli.demo_walks import WALKS

TIMES = 40
FRAMES = 40


def zipped(frames: Sequence[Frame], *options: int) -> bytes:
    """Frames as PNGs in a zip; the options are those of OpenCV's encoder."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for number, frame in enumerate(frames):
            target.writestr(f"{number}.png", cv2.imencode(".png", frame, options)[1].tobytes())
    return archive.getvalue()


def compressed(frames: Sequence[Frame]) -> bytes:
    """Frames as an `.npz`."""
    content = io.BytesIO()
    np.savez_compressed(content, silhouettes=np.stack(frames))
    return content.getvalue()


def uploads() -> dict[str, bytes]:
    """One walk in the sizes and formats that clients send most."""
    raw = decode(next(Path(WALKS).rglob("*.zip")).read_bytes())[:FRAMES]
    large = [
        np.asarray(cv2.resize(frame, (640, 480), interpolation=cv2.INTER_NEAREST), np.uint8)
        for frame in raw
    ]
    silhouettes = list(prepare(raw).silhouettes)
    bilevel = (cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9)
    rows, columns = raw[0].shape
    return {
        f"PNG {columns} x {rows}, 1 bit": zipped(raw, *bilevel),
        f"PNG {columns} x {rows}, 8 bits": zipped(raw),
        "PNG 640 x 480, 1 bit": zipped(large, *bilevel),
        "PNG 640 x 480, 8 bits": zipped(large),
        f"npz {columns} x {rows}": compressed(raw),
        "PNG normalised": zipped(silhouettes),
        "npz normalised": compressed(silhouettes),
    }


def time_stages(data: bytes) -> dict[str, float]:
    """Seconds of each stage. Cleaning normalised frames is what an upload of them is spared."""
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        seconds[stage] = time.process_time() - began
        return result

    frames = timed("decode", lambda: decode(data))
    if frames[0].shape[0] > 64:
        strips = timed("clean", lambda: clean(frames).strips)
        silhouettes = timed("normalise", lambda: [normalise(strip) for strip in strips])
    else:
        silhouettes = frames
    stack = np.stack([silhouette for silhouette in silhouettes if silhouette is not None])
    timed("judge", lambda: judge(stack, frames_in=len(frames)))
    timed("upload", lambda: prepare_upload(data, DecodeLimits()))
    return seconds


def measure() -> dict[str, object]:
    """Everything, as rows of a table."""
    cv2.setNumThreads(1)
    cases = uploads()
    times: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(TIMES):
        for name, data in cases.items():
            times[name].append(time_stages(data))
    return {
        "benchmark": f"from an upload of {FRAMES} frames to judged silhouettes, ms",
        "machine": machine.describe(),
        "rows": {
            name: {
                stage: round(float(np.median([run[stage] for run in runs])) * 1000, 2)
                for stage in runs[0]
            }
            for name, runs in times.items()
        },
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine.publish(measure(), options.out)


if __name__ == "__main__":
    main()

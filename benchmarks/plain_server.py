"""What people would run instead of a service: the network in plain torch behind a FastAPI handler.

Images are read by Pillow and normalised one by one, the network computes in float32, and the probe
is compared with every embedding of a matrix. There are no limits, no database, no processes for
strangers' bytes, no batches and no record.

    python -m benchmarks.plain_server CHECKPOINT WALKS
"""

from __future__ import annotations

import argparse
import io
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

from models import checkpoint

HEIGHT, WIDTH, SHOWN = 64, 64, 44


def read(archive: bytes) -> list[npt.NDArray[np.uint8]]:
    """The images of a zip, in the order of their names' numbers."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        names = sorted(file.namelist(), key=lambda name: int(Path(name).stem))
        return [np.asarray(Image.open(io.BytesIO(file.read(name))).convert("L")) for name in names]


def normalised(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A person cut out by height and centred by mass: uint8 [64, 44]."""
    rows = np.flatnonzero(frame.any(axis=1))
    person = frame[rows[0] : rows[-1] + 1]
    width = max(1, round(person.shape[1] * HEIGHT / person.shape[0]))
    person = np.asarray(cv2.resize(person, (width, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)
    mass = person.sum(axis=0, dtype=np.int64).cumsum()
    middle = int(np.searchsorted(mass, mass[-1] / 2)) + WIDTH
    padded = np.pad(person, ((0, 0), (WIDTH, WIDTH)))
    return padded[:, middle - SHOWN // 2 : middle + SHOWN // 2]


def application(folder: Path, walks: int) -> FastAPI:
    """The handler, over a matrix of `walks` random embeddings."""
    network, card = checkpoint.load(folder, "cpu")
    network.eval()
    gallery = np.random.default_rng(0).standard_normal((walks, card.parts * card.channels))
    gallery = gallery.astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> None:
        """Answer once the network is loaded."""

    @app.post("/identify")
    def identify(sequence: UploadFile) -> dict[str, Any]:
        """The five nearest walks."""
        frames = np.stack([normalised(frame) for frame in read(sequence.file.read())])
        with torch.inference_mode():
            embedding = network.matching(network(torch.from_numpy(frames)[None] / 255).embeddings)
        probe = embedding.flatten().numpy()
        similarities = gallery @ (probe / np.linalg.norm(probe))
        best = np.argsort(-similarities)[:5]
        return {
            "probe": {"frames": len(frames)},
            "candidates": [
                {"walk": int(one), "similarity": float(similarities[one])} for one in best
            ],
        }

    return app


def main() -> None:
    """Serve on a port of this machine, which is announced."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("walks", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the service: requests share the cores
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"listens on http://127.0.0.1:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(application(options.checkpoint, options.walks), log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()

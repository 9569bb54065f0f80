"""A template whose decoders do what the upload says, as if a stranger had taken them over."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from models.silhouettes.prepare import Prepared
from models.silhouettes.types import Quality
from service.recognition import decoder_process


def _walk(frames: int = 1, score: float = 1.0) -> Prepared:
    quality = Quality(score, (), frames, frames, {})
    return Prepared(np.zeros((frames, 64, 64), np.uint8), quality)


def _obey(data: bytes, _limits: object, *, clean: bool = True) -> Prepared:
    assert clean
    match data.split():
        case [b"spin"]:
            while True:
                pass
        case [b"sleep"]:
            time.sleep(1000)
        case [b"memory", size]:
            return _walk(len(np.ones(int(size), np.uint8)) // int(size))
        case [b"crash"]:
            os.abort()
        case [b"frames", count]:
            return _walk(int(count))
        case [b"score", score]:
            return _walk(score=float(score))
        case [b"secret", name]:
            return _walk(2 if name.decode() in os.environ else 1)
        case [b"number"]:
            return _walk(score=os.getpid() / 2**23)
    return _walk()


if __name__ == "__main__":
    setattr(decoder_process, "prepare_upload", _obey)  # noqa: B010
    decoder_process.main(sys.argv[1:])

"""Starts the process that looks for walks in a clip, and takes its word for nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Final, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.footage.upload import Origin
from models.silhouettes.normalise import HEIGHT, WIDTH
from models.silhouettes.types import Quality
from service.foundation.errors import Unavailable
from service.foundation.settings import Settings
from service.gallery.records import Silhouettes
from service.recognition.confinement import ENVIRONMENT

_LONGEST_LINE: Final = 64 * 1024
_MOST_FRAMES: Final = 2000  # of a walk, which lasts 8 s at most
_NO_MEMORY: Final = "the clip takes more memory than it may; export it with smaller pictures"
_AGAIN_S: Final = 5.0
_BROKE_OFF: Final = "the clip could not be read to its end; export it again"


class CannotRead(Exception):
    """A clip that cannot be searched, and why in one sentence."""


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class At(_Said):
    """So many bytes of the clip are read."""

    kind: Literal["at"]
    read: int = Field(ge=0)
    of: int = Field(ge=1)


class Poor(_Said):
    """A walk in which no gait can be recognised, and why: codes of quality."""

    kind: Literal["poor"]
    codes: tuple[str, ...] = Field(min_length=1)


class Part(_Said):
    """Nobody is followed at this picture of the clip, and all walks before it were said.

    Attributes:
        seconds: when it is.
        segmenter, tracks, people, outcome: of the clip before it.
    """

    kind: Literal["part"]
    segmenter: str
    seconds: float = Field(gt=0)
    tracks: int = Field(ge=0)
    people: int = Field(ge=0)
    outcome: dict[str, int]


class Done(_Said):
    """The clip was read to its end; `nobody` says why there would be no walks."""

    kind: Literal["done"]
    segmenter: str
    seconds: float
    people: int = Field(ge=0)
    nobody: str


class Found(_Said):
    """A walk as it ends."""

    kind: Literal["walk"]
    frames: int = Field(ge=1, le=_MOST_FRAMES)
    quality: Quality
    origin: Origin


class _Refused(_Said):
    kind: Literal["refused"]
    reason: str | None  # None: it takes too much memory


class _Fault(_Said):
    kind: Literal["fault"]
    trace: str


_SAID: Final[TypeAdapter[At | Poor | Part | Done | Found | _Refused | _Fault]] = TypeAdapter(
    Annotated[At | Poor | Part | Done | Found | _Refused | _Fault, Field(discriminator="kind")]
)

Message = At | Poor | Part | Done | tuple[Found, Silhouettes]


@contextmanager
def reading(
    clip: Path, settings: Settings, begin: Part | None = None
) -> Iterator[Iterator[Message]]:
    """What the process says of a clip, walk by walk, after a part; it is ended with the block.

    The messages end with `Done`, or raise `CannotRead`, or `Unavailable` if the process was killed;
    a fault of the program raises `RuntimeError`, with what the process said of it.
    """
    options = {
        "memory_bytes": settings.max_decoded_bytes,
        "picture_seconds": settings.max_footage_decode_seconds,
        "seconds": settings.max_footage_job_seconds,
        "max_side": settings.max_side,
        "clean": settings.clean_silhouettes,
        "segmenter": settings.segmenter,
        "begin": None if begin is None else begin.model_dump(),
    }
    with (
        clip.open("rb") as file,
        subprocess.Popen(
            (sys.executable, "-m", "service.recognition.footage_process", json.dumps(options)),
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a file is more than it may write to
            env={name: value for name, value in os.environ.items() if name in ENVIRONMENT},
        ) as process,
    ):
        try:
            yield _messages(process)
        finally:
            process.kill()


def _messages(process: subprocess.Popen[bytes]) -> Iterator[Message]:
    said = cast(BufferedIOBase, process.stdout)
    while line := said.readline(_LONGEST_LINE):
        try:
            message = _SAID.validate_json(line)
        except ValidationError as error:
            raise RuntimeError("the process that reads footage said what it never says") from error
        match message:
            case _Refused():
                raise CannotRead(message.reason or _NO_MEMORY)
            case _Fault():
                raise RuntimeError(message.trace)
            case Found():
                yield message, _silhouettes(said, message.frames)
            case Done():
                yield message
                return
            case At() | Poor() | Part():
                yield message
    status = process.wait()
    if status == -signal.SIGXCPU:
        raise CannotRead("a picture of the clip takes too long to read; export it again, smaller")
    if status == -signal.SIGKILL:
        # By the kernel that lacks memory, or by hand: no fault of the clip's.
        raise Unavailable("the process that reads the clip was killed", retry_after=_AGAIN_S)
    raise CannotRead(_BROKE_OFF)


def _silhouettes(said: BufferedIOBase, frames: int) -> Silhouettes:
    data = said.read(frames * HEIGHT * WIDTH)
    if len(data) < frames * HEIGHT * WIDTH:
        raise CannotRead(_BROKE_OFF)
    return np.frombuffer(data, np.uint8).reshape(frames, HEIGHT, WIDTH)

"""The process in which strangers' bytes become silhouettes; it may be ended at any moment.

`python -m service.recognition.decoder_process` is a template: it has loaded what decoding needs and
forks a decoder whenever it is asked, in milliseconds. Before a decoder reads a byte it gives up
what it does not need: memory beyond an allowance, processor time beyond the limit, files, core
dumps. It takes one upload after another while they are walks, because its first one costs a third
more, and ends with the first that is not.

Over its standard input, a Unix socket, the template is sent `fork`, with the socket that the new
decoder is to talk through, or `kill` or `slow` and the number of a decoder. When that socket is
closed, however its other end died, every decoder is killed and the template ends.

A decoder says its number (a line). It reads what is asked as JSON and an upload in pieces, each
behind its length in four bytes and an empty one at the end. It says (a line) when that is footage,
which may take longer and more memory. It answers a line of JSON and the silhouettes, uint8
[s, 64, 64]. The networks for footage begin threads, so each decoder that needs them loads its own.
"""

from __future__ import annotations

import functools
import gc
import io
import json
import os
import signal
import socket
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from io import BufferedIOBase
from typing import Any, NamedTuple, NoReturn

import cv2
import numpy as np

from models.footage.pictures import FootageLimits
from models.footage.segmentation import BackgroundSegmenter, NetworkSegmenter, Segmenter
from models.footage.upload import Origin, SeveralPeople, is_footage, read_walk
from models.footage.weights import MissingWeights
from models.silhouettes.budget import DecodeLimits
from models.silhouettes.errors import (
    PoorSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
)
from models.silhouettes.members import NO_MEMORY
from models.silhouettes.prepare import Prepared, prepare_upload
from models.silhouettes.quality import LEAST_FRAMES
from service.recognition.confinement import (
    FOR_FOOTAGE,
    THREADS,
    SegmenterName,
    allow_memory,
    allow_time,
    confine,
)

FORK, KILL, SLOW = b"fork", b"kill", b"slow"
_NICENESS = 10  # of a slow decoder
_IS_FOOTAGE = b'{"footage": true}\n'


class _Limits(NamedTuple):
    """What the uploads of a decoder may cost, and how they are read."""

    silhouettes: DecodeLimits
    footage: FootageLimits
    memory: int
    clean: bool
    segmenter: SegmenterName


def main(arguments: list[str]) -> None:
    """Fork decoders until standard input ends; the arguments are limits as JSON.

    They are `DecodeLimits`' own, `clean`, `memory_bytes`: what a decoder may take beside what it
    has when it starts, `footage`: `FootageLimits`' own, and `segmenter`.
    """
    options: dict[str, Any] = json.loads(arguments[0])
    memory: int = options.pop("memory_bytes")
    clean: bool = options.pop("clean")
    segmenter: SegmenterName = options.pop("segmenter")
    footage = FootageLimits(**options.pop("footage"))
    limits = _Limits(DecodeLimits(**options), footage, memory, clean, segmenter)
    os.umask(0o077)
    cv2.setNumThreads(1)  # a forked process has no other threads
    _warm_up(limits.silhouettes)
    gc.freeze()  # collecting would copy the pages that decoders share with the template
    # Who presses Ctrl-C at the service ends it, and it ends this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: set[int] = set()
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as control:
        while True:
            message, sockets, _, _ = socket.recv_fds(control, 64, 1)
            while children and (ended := os.waitpid(-1, os.WNOHANG)[0]):
                children.discard(ended)
            if not message:
                break
            order, _, number = message.partition(b" ")
            if order != FORK:
                # A child's number is nobody else's until it was waited for.
                if int(number) in children and order == KILL:
                    os.kill(int(number), signal.SIGKILL)
                elif int(number) in children:
                    os.setpriority(os.PRIO_PROCESS, int(number), _NICENESS)
                continue
            child = os.fork()
            if child == 0:
                control.close()
                _decode_and_exit(sockets[0], limits)
            children.add(child)
            os.close(sockets[0])
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _warm_up(limits: DecodeLimits) -> None:
    """Decode once here what comes most, so that no decoder has to load what that takes."""
    person = np.zeros((120, 80), np.uint8)
    person[10:110, 30:50] = 255
    _, png = cv2.imencode(".png", person)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for number in range(LEAST_FRAMES):
            target.writestr(f"{number}.png", png.tobytes())
    with suppress(PoorSequence):  # nobody walks there
        prepare_upload(archive.getvalue(), limits)


def _decode_and_exit(descriptor: int, limits: _Limits) -> NoReturn:
    """Serve uploads in a forked process; never returns into the template's loop."""
    status = 1
    try:
        with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as sent:
            confine()
            allow_memory(limits.memory)
            connection.sendall(b"%d\n" % os.getpid())
            accepted = True
            while accepted and (asked := _piece(sent)) is not None:
                if (data := _read(sent)) is None:
                    break
                allow_time(limits.silhouettes.max_seconds)
                header, silhouettes = _answer(data, limits, connection, **json.loads(asked))
                connection.sendall(json.dumps(header).encode() + b"\n" + silhouettes)
                accepted = bool(silhouettes)
                del data, silhouettes
        status = 0
    except OSError:  # the service has gone away, or lost its interest in this upload
        status = 2
    finally:
        os._exit(status)


def _piece(sent: BufferedIOBase) -> bytes | None:
    """What comes behind its length; None when there is nothing further."""
    length = sent.read(4)
    return sent.read(int.from_bytes(length, "big")) if len(length) == 4 else None


def _read(sent: BufferedIOBase) -> bytes | None:
    """One upload; None when it does not end."""
    pieces: list[bytes] = []
    while piece := _piece(sent):
        pieces.append(piece)
    return None if piece is None else b"".join(pieces)


def _answer(
    data: bytes,
    limits: _Limits,
    connection: socket.socket,
    *,
    input: str,
    track: int | None,
    frame_rate: float | None,
) -> tuple[Mapping[str, Any], bytes]:
    origin: Origin | None = None
    try:
        if input == "footage" or (input == "auto" and _is_footage(data, limits.footage)):
            connection.sendall(_IS_FOOTAGE)
            prepared, origin = _read_footage(data, limits, track, frame_rate)
        else:
            prepared = prepare_upload(data, limits.silhouettes, clean=limits.clean)
    except SequenceError as error:
        refusal: dict[str, Any] = {
            "refused": type(error).__name__,
            "reason": error.reason,
            "where": error.where,
        }
        if isinstance(error, PoorSequence):
            refusal |= {"codes": error.reasons, "quality": asdict(error.quality)}
        if isinstance(error, SeveralPeople):
            refusal |= error.facts()
        return refusal, b""
    header: dict[str, Any] = {
        "frames": len(prepared.silhouettes),
        "quality": asdict(prepared.quality),
    }
    if origin is not None:
        header["origin"] = asdict(origin)
    return header, prepared.silhouettes.tobytes()


def _is_footage(data: bytes, limits: FootageLimits) -> bool:
    try:
        return is_footage(data, limits)
    except SequenceError:
        return False  # what reads silhouettes says what is wrong with it


def _read_footage(
    data: bytes, limits: _Limits, track: int | None, frame_rate: float | None
) -> tuple[Prepared, Origin]:
    allow_memory(limits.memory + FOR_FOOTAGE)
    allow_time(limits.footage.max_seconds * THREADS)
    make = _network if limits.segmenter == "network" else BackgroundSegmenter
    try:
        return read_walk(
            data,
            limits.footage,
            make,
            track=track,
            frame_rate=frame_rate,
            clean=limits.clean,
        )
    except MissingWeights as error:
        raise UnsupportedSequence(str(error)) from error
    except MemoryError as error:
        raise SequenceTooLarge(NO_MEMORY) from error
    finally:
        allow_memory(limits.memory)  # beside the networks, which stay


@functools.cache
def _network() -> Segmenter:
    """The networks, loaded when the first footage comes."""
    return NetworkSegmenter(threads=THREADS)


if __name__ == "__main__":
    main(sys.argv[1:])

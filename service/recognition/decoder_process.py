"""The process in which strangers' bytes become silhouettes; it may be ended at any moment.

`python -m service.recognition.decoder_process` is a template: it has loaded what decoding needs and
forks a decoder whenever it is asked, in milliseconds. Before a decoder reads a byte it gives up
what it does not need: memory beyond an allowance, processor time beyond the limit, files, core
dumps. It takes one upload after another while they are walks, because its first one costs a third
more, and ends with the first that is not.

Over its standard input, a Unix socket, the template is sent `fork`, with the socket that the new
decoder is to talk through, or `kill` or `slow` and the number of a decoder. When that socket is
closed, however its other end died, every decoder is killed and the template ends.

A decoder says its number (a line). It reads an upload in pieces, each behind its length in four
bytes and an empty one at the end. It answers a line of JSON and the silhouettes, uint8 [s, 64, 64].
"""

from __future__ import annotations

import gc
import io
import json
import math
import os
import resource
import signal
import socket
import sys
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np

from models.silhouettes.budget import DecodeLimits
from models.silhouettes.errors import PoorSequence, SequenceError
from models.silhouettes.prepare import prepare_upload
from models.silhouettes.quality import LEAST_FRAMES

FORK, KILL, SLOW = b"fork", b"kill", b"slow"
_MOST_FILES = 64  # that are open: libraries load parts of themselves when they need them
_CPU_GRACE_S = 2  # the budget speaks first
_NICENESS = 10  # of a slow decoder


def main(arguments: list[str]) -> None:
    """Fork decoders until standard input ends; the arguments are limits as JSON.

    They are `DecodeLimits`' own, `clean`, and `memory_bytes`: what a decoder may take beside what
    it has when it starts.
    """
    options: dict[str, Any] = json.loads(arguments[0])
    memory: int = options.pop("memory_bytes")
    clean: bool = options.pop("clean")
    limits = DecodeLimits(**options)
    os.umask(0o077)
    cv2.setNumThreads(1)  # a forked process has no other threads
    _warm_up(limits)
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
                _decode_and_exit(sockets[0], limits, memory, clean=clean)
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


def _decode_and_exit(
    descriptor: int, limits: DecodeLimits, memory: int, *, clean: bool
) -> NoReturn:
    """Serve uploads in a forked process; never returns into the template's loop."""
    status = 1
    try:
        with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as sent:
            _confine(memory)
            connection.sendall(b"%d\n" % os.getpid())
            accepted = True
            while accepted and (data := _read(sent)) is not None:
                _allow_time(limits.max_seconds)
                header, silhouettes = _answer(data, limits, clean=clean)
                connection.sendall(json.dumps(header).encode() + b"\n" + silhouettes)
                accepted = bool(silhouettes)
                del data, silhouettes
        status = 0
    except OSError:  # the service has gone away, or lost its interest in this upload
        status = 2
    finally:
        os._exit(status)


def _confine(memory: int) -> None:
    """Give up what decoding does not need. Linux says what is used; elsewhere only time counts."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:
        pages = 0
    # Should memory run short all the same, the kernel is to end this process first; where it takes
    # no such wishes, the bounds below hold alone.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_FSIZE, 0)
    _bound(resource.RLIMIT_NOFILE, _MOST_FILES)
    if pages:
        _bound(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)


def _bound(which: int, bound: int) -> None:
    _, hard = resource.getrlimit(which)
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(which, (bound, bound))


def _allow_time(seconds: float) -> None:
    """Give the next upload its share of processor time; the kernel ends what takes more."""
    soft = math.ceil(time.process_time() + seconds) + _CPU_GRACE_S
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _read(sent: BufferedIOBase) -> bytes | None:
    """One upload; None when there is no further one."""
    pieces: list[bytes] = []
    while True:
        length = sent.read(4)
        if len(length) < 4:
            return None
        piece = sent.read(int.from_bytes(length, "big"))
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def _answer(data: bytes, limits: DecodeLimits, *, clean: bool) -> tuple[Mapping[str, Any], bytes]:
    try:
        prepared = prepare_upload(data, limits, clean=clean)
    except SequenceError as error:
        refusal: dict[str, Any] = {
            "refused": type(error).__name__,
            "reason": error.reason,
            "where": error.where,
        }
        if isinstance(error, PoorSequence):
            refusal |= {"codes": error.reasons, "quality": asdict(error.quality)}
        return refusal, b""
    header = {"frames": len(prepared.silhouettes), "quality": asdict(prepared.quality)}
    return header, prepared.silhouettes.tobytes()


if __name__ == "__main__":
    main(sys.argv[1:])

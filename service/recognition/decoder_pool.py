"""Decoders: processes that read uploads, forked ahead of need, ended when they take too much.

Strangers' bytes never reach this process's libraries. A template
(`service.recognition.decoder_process`)
forks decoders with limits of memory and processor time. One that answers with a walk takes another
upload, up to a number; whatever else happens, it is killed, so a place is free when the work has
really ended.

A request decodes its walks one after the other. It waits its turn among requests; after a while in
which others could have been served it moves to a few places for slow ones, at lower priority, and
keeps that place for all of its walks. So slow uploads, however many, never keep quick ones waiting
for longer than that while.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from time import perf_counter
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.footage.pictures import FootageLimits
from models.footage.upload import NoWalker, Origin, SeenTrack, SeveralPeople
from models.silhouettes.budget import MEBIBYTE, DecodeLimits
from models.silhouettes.errors import (
    MalformedSequence,
    PoorSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
)
from models.silhouettes.normalise import HEIGHT, WIDTH
from models.silhouettes.prepare import Prepared
from models.silhouettes.types import Quality
from service.foundation.errors import Unavailable
from service.recognition.confinement import ENVIRONMENT, SegmenterName
from service.recognition.decoder_process import FORK, KILL, SLOW

_log = logging.getLogger(__name__)

Read = Callable[[int], Awaitable[bytes]]
"""Reads at most so many bytes of an upload, none at its end."""

_PIECE = MEBIBYTE
_START_S: Final = 20.0  # in which a decoder starts, or something is wrong
_MOST_WALKS: Final = 100  # of one decoder, which bounds what libraries may leak
_LOADING_S: Final = 20.0  # of the networks for footage
_AGAIN_S: Final = 0.2  # between two looks for a slow place
_MOST_TRACKS: Final = 1000  # in a clip that is read at once
_OF_PREPARING: Final = 384 * MEBIBYTE  # planes of a frame of 4096 x 4096, and libraries' own


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of an upload.

    Attributes:
        input: what it is; `auto` is told by its content.
        track: whose walk, of the tracks in footage.
        frame_rate: images a second, of footage that is sent as images.
    """

    input: Literal["auto", "silhouettes", "footage"] = "auto"
    track: int | None = None
    frame_rate: float | None = None


UNSAID: Final = Asked()


class Decoded(NamedTuple):
    """A walk, where in footage it was if it was there, and the seconds that reading took."""

    prepared: Prepared
    origin: Origin | None
    seconds: float


class _Footage(BaseModel):
    """A decoder's word that it reads footage."""

    model_config = ConfigDict(extra="forbid")

    footage: Literal[True]


class _Taken(BaseModel):
    """A decoder's answer to a walk. It is checked: its sender read a stranger's bytes."""

    model_config = ConfigDict(extra="forbid")

    frames: int = Field(ge=1)
    quality: Quality
    origin: Origin | None = None


class _Refused(BaseModel):
    """A decoder's refusal."""

    model_config = ConfigDict(extra="forbid")

    refused: str
    reason: str
    where: str = ""
    codes: tuple[str, ...] = ()
    quality: Quality | None = None
    tracks: tuple[SeenTrack, ...] = Field(default=(), max_length=_MOST_TRACKS)


_ANSWERS: Final[TypeAdapter[_Footage | _Taken | _Refused]] = TypeAdapter(
    _Footage | _Taken | _Refused
)
_REFUSALS: Final = {
    kind.__name__: kind
    for kind in (MalformedSequence, NoWalker, SequenceTooLarge, UnsupportedSequence)
}
_LONGEST_HEADER: Final = 2 * MEBIBYTE  # with a picture and outlines of each track
_PICTURE: Final = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+=*")


@dataclass(slots=True, eq=False)
class Decoder:
    """A forked process that waits for an upload, and the uploads it has yet to take."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    walks_left: int = _MOST_WALKS


class DecoderPool:
    """Turns uploads into prepared walks in processes of their own; owned by an event loop."""

    def __init__(
        self,
        limits: DecodeLimits,
        *,
        clean: bool,
        max_upload_bytes: int,
        workers: int,
        footage: FootageLimits | None = None,
        segmenter: SegmenterName = "network",
        slow_after: float = 2.0,
        grace_s: float = 3.0,
        template: str = "service.recognition.decoder_process",
    ) -> None:
        """`workers` uploads are decoded at once, and as many slow ones beside them.

        An upload is slow from `slow_after` seconds on. A decoder says itself that its time is over;
        one that has not said so `grace_s` later is ended. `template` is the module that decodes.
        Footage has limits of its own, the defaults when None.
        """
        self._footage = footage or FootageLimits()
        self._limits = limits
        self._grace_s = grace_s
        self._template_module = template
        self.slow_after = slow_after
        # An upload is there in pieces and as a whole for a moment, before any of it is decoded.
        memory = limits.max_decoded_bytes + 2 * max_upload_bytes + _OF_PREPARING
        self._options = json.dumps(
            asdict(limits)
            | {"clean": clean, "memory_bytes": memory}
            | {"footage": asdict(self._footage), "segmenter": segmenter}
        )
        self._spares = workers
        self.quick = _Places(workers)
        self.slow = _Places(workers)
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready: deque[Decoder] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._reading: set[Decoder] = set()
        self.in_haste = False
        self._closed = False

    async def __aenter__(self) -> Self:
        self._fill()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        for decoder in self._ready:
            decoder.writer.transport.abort()
        self._ready.clear()
        self._stop_template()
        await asyncio.sleep(0)  # in which the loop lets go of the sockets

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """One request's place among the others; its walks are decoded one after the other."""
        turn = Turn(self)
        try:
            yield turn
        finally:
            turn.leave()

    async def decode(self, read: Read, started: Callable[[Decoder], None], asked: Asked) -> Decoded:
        """Decode and prepare one upload in a process of its own, of which `started` is told.

        Its seconds count from the first byte that was handed over. Raises `SequenceError` for an
        upload that is refused, and `Unavailable` when no process can be had.
        """
        decoder = await self._take()
        answered = False
        self._reading.add(decoder)
        try:
            started(decoder)
            async with asyncio.timeout(self._limits.max_seconds + self._grace_s) as patience:
                decoded = await self._talk(decoder, read, asked, patience)
                answered = True
                return decoded
        except TimeoutError as error:
            raise SequenceTooLarge(
                f"reading it took longer than {self._limits.max_seconds:g} s; "
                "send a shorter sequence or smaller frames"
            ) from error
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            if self.in_haste:
                raise _stopped() from error
            _log.warning("a decoder ended before it had answered: %s", error)
            raise _taken_too_much() from error
        finally:
            self._reading.discard(decoder)
            if answered and decoder.walks_left > 0 and not self._closed:
                self._ready.append(decoder)
            else:
                self._end(decoder)

    async def _talk(
        self, decoder: Decoder, read: Read, asked: Asked, patience: asyncio.Timeout
    ) -> Decoded:
        began = perf_counter()
        words = json.dumps(asdict(asked)).encode()
        decoder.writer.writelines((len(words).to_bytes(4, "big"), words))
        while piece := await read(_PIECE):
            decoder.writer.writelines((len(piece).to_bytes(4, "big"), piece))
            await decoder.writer.drain()
        decoder.writer.write(bytes(4))
        try:
            answer = _ANSWERS.validate_json(await decoder.reader.readuntil(b"\n"))
            if isinstance(answer, _Footage):
                longest = self._footage.max_seconds + _LOADING_S + self._grace_s
                patience.reschedule(asyncio.get_running_loop().time() + longest)
                answer = _ANSWERS.validate_json(await decoder.reader.readuntil(b"\n"))
        except (ValidationError, asyncio.LimitOverrunError) as error:
            raise ConnectionError("a decoder answered what none would") from error
        if isinstance(answer, _Refused):
            raise _refusal(answer)
        if not isinstance(answer, _Taken):
            raise ConnectionError("a decoder answered what none would")
        if answer.frames > self._limits.max_frames or not 0 <= answer.quality.score <= 1:
            raise ConnectionError("a decoder answered what no walk is")
        pixels = await decoder.reader.readexactly(answer.frames * HEIGHT * WIDTH)
        decoder.walks_left -= 1
        silhouettes = np.frombuffer(pixels, np.uint8).reshape(answer.frames, HEIGHT, WIDTH)
        prepared = Prepared(silhouettes, answer.quality)
        return Decoded(prepared, answer.origin, perf_counter() - began)

    async def _take(self) -> Decoder:
        while self._ready:
            decoder = self._ready.pop()  # the latest one, whose memory is there already
            self._fill()
            if not decoder.reader.at_eof():
                return decoder
            self._end(decoder)
        try:
            return await self._fork()
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            _log.error("no decoder could be started: %r", error)
            raise Unavailable(
                "The service cannot start what reads sequences. Try again in a moment.",
                slug="overloaded",
                retry_after=2.0,
            ) from error

    def _fill(self) -> None:
        """Fork ahead of need, behind the back of who needs one now."""
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fork_spares(), name="fork decoders")

    async def _fork_spares(self) -> None:
        try:
            while len(self._ready) < self._spares:
                self._ready.append(await self._fork())
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            _log.error("no decoder could be started ahead of need: %r", error)

    async def _fork(self) -> Decoder:
        control = self._running_template()
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(control, [FORK], [theirs.fileno()])
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_LONGEST_HEADER)
        try:
            async with asyncio.timeout(_START_S):
                number = int(await reader.readuntil(b"\n"))
        except BaseException:
            writer.transport.abort()
            raise
        return Decoder(number, reader, writer)

    def _running_template(self) -> socket.socket:
        if self._template is not None and self._template.poll() is not None:
            _log.error("the decoders' template had ended with %s", self._template.returncode)
            self._stop_template()
        if self._control is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._template = subprocess.Popen(
                    [sys.executable, "-m", self._template_module, self._options],
                    stdin=theirs.fileno(),
                    env=_environment(),
                )
            ours.setblocking(False)
            self._control = ours
        return self._control

    def _stop_template(self) -> None:
        if self._control is not None:
            self._control.close()  # at which it kills every decoder
            self._control = None
        if self._template is not None:
            try:
                self._template.wait(2)
            except subprocess.TimeoutExpired:
                self._template.kill()
                self._template.wait()
            self._template = None

    def give_up_slow(self) -> None:
        """The service stops: quick uploads may end, slow ones are answered that it does."""
        self.in_haste = True
        for decoder in self._reading:
            if decoder.walks_left == 0:
                self._end(decoder)

    def slow_down(self, decoder: Decoder) -> None:
        """Let quick uploads go before the one that this decoder reads; it takes no further one."""
        decoder.walks_left = 0
        if self.in_haste:
            self._end(decoder)
        else:
            self._tell(SLOW, decoder.number)

    def _end(self, decoder: Decoder) -> None:
        """See to it that the process is gone, whatever it does."""
        decoder.writer.transport.abort()
        self._tell(KILL, decoder.number)

    def _tell(self, order: bytes, number: int) -> None:
        if self._control is not None:
            with suppress(OSError):  # the template is gone, and its decoders with it
                self._control.send(b"%s %d" % (order, number))


class Turn:
    """One request's turn at a pool's decoders."""

    def __init__(self, pool: DecoderPool) -> None:
        self._pool = pool
        self._decoder: Decoder | None = None  # of the walk that is being read
        self.is_slow = False

    async def prepare(self, read: Read, asked: Asked = UNSAID) -> Decoded:
        """Decode and prepare one walk; raises what `DecoderPool.decode` raises.

        Also `Unavailable`, for a slow one while others wait and all slow places are taken.
        """
        if self.is_slow:
            return await self._pool.decode(read, self._started, asked)
        quick = self._pool.quick
        await quick.enter()
        self._decoder = None
        work = asyncio.create_task(self._pool.decode(read, self._started, asked))
        try:
            await asyncio.wait({work}, timeout=self._pool.slow_after)
            while not work.done():
                if self._pool.in_haste:
                    raise _stopped()
                if self._pool.slow.free:
                    await self._pool.slow.enter()
                    self.is_slow = True
                    quick.leave()
                    if self._decoder is not None:
                        self._pool.slow_down(self._decoder)
                elif quick.waiting:
                    raise Unavailable(
                        "Reading this takes long, and so do other sequences that are being read. "
                        "Try again later, or send smaller frames.",
                        slug="overloaded",
                        retry_after=5.0,
                    )
                await asyncio.wait({work}, timeout=None if self.is_slow else _AGAIN_S)
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if not self.is_slow:
                quick.leave()

    def _started(self, decoder: Decoder) -> None:
        """Know who reads; a walk may have waited for its decoder until it was slow."""
        self._decoder = decoder
        if self.is_slow:
            self._pool.slow_down(decoder)

    def leave(self) -> None:
        """Give back the slow place, if the request had one."""
        if self.is_slow:
            self._pool.slow.leave()


class _Places:
    """So many places, for one event loop; those who wait enter in their order."""

    def __init__(self, count: int) -> None:
        self._places = asyncio.Semaphore(count)
        self.waiting = 0

    @property
    def free(self) -> bool:
        """Whether one can be entered at once."""
        return not self._places.locked()

    async def enter(self) -> None:
        """Wait for a place and take it."""
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1

    def leave(self) -> None:
        """Give a place back."""
        self._places.release()


def _refusal(answer: _Refused) -> SequenceError:
    if answer.tracks:
        if not all(_PICTURE.fullmatch(track.thumbnail) for track in answer.tracks):
            raise ConnectionError("a decoder answered what none would")
        return SeveralPeople(answer.tracks)
    if answer.quality is not None:
        return PoorSequence(answer.reason, reasons=answer.codes, quality=answer.quality)
    if answer.refused in _REFUSALS:
        return _REFUSALS[answer.refused](answer.reason, where=answer.where)
    return _taken_too_much()


def _stopped() -> Unavailable:
    return Unavailable(
        "The service was stopped while it was reading this. Send it again when it is back.",
        retry_after=5.0,
    )


def _taken_too_much() -> SequenceTooLarge:
    return SequenceTooLarge(
        "reading it takes more memory or time than a sequence may; send fewer or smaller frames"
    )


def _environment() -> dict[str, str]:
    """What a decoder needs of this process's environment; its secrets are none of it."""
    kept = {name: text for name, text in os.environ.items() if name in ENVIRONMENT}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
